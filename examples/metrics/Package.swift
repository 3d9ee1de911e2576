// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "metrics",
    dependencies: [.package(name: "transfer-engine", path: "../..")],
    targets: [
        .executableTarget(
            name: "metrics",
            dependencies: [
                .product(name: "EngineMetrics", package: "transfer-engine"),
                .product(name: "TransferEngine", package: "transfer-engine"),
            ])
    ]
)
