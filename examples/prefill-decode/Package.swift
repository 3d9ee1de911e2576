// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "prefill-decode",
    dependencies: [.package(name: "transfer-engine", path: "../..")],
    targets: [
        .executableTarget(
            name: "prefill-decode",
            dependencies: [
                .product(name: "KVCacheTransfer", package: "transfer-engine"),
                .product(name: "TransferEngine", package: "transfer-engine"),
            ]),
        .executableTarget(
            name: "llama-demo",
            dependencies: [
                .product(name: "KVCacheTransfer", package: "transfer-engine"),
                .product(name: "TransferEngine", package: "transfer-engine"),
            ]),
    ]
)
