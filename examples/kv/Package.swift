// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "kv",
    dependencies: [.package(name: "transfer-engine", path: "../..")],
    targets: [
        .executableTarget(
            name: "kv",
            dependencies: [
                .product(name: "KVCacheTransfer", package: "transfer-engine"),
                .product(name: "TransferEngine", package: "transfer-engine"),
            ])
    ]
)
