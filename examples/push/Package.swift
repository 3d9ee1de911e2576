// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "push",
    dependencies: [.package(name: "transfer-engine", path: "../..")],
    targets: [
        .executableTarget(
            name: "push", dependencies: [.product(name: "TransferEngine", package: "transfer-engine")])
    ]
)
