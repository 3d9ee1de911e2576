// swift-tools-version: 6.2
import PackageDescription

// Every Swift target is built with the same strict settings; warnings are errors everywhere.
let strict: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .enableExperimentalFeature("Lifetimes"),
    .treatAllWarnings(as: .error),
]

// A generic or a small function that does not cross its module's border costs a call on the data path.
let hot: [SwiftSetting] =
    strict + [.unsafeFlags(["-cross-module-optimization"], .when(configuration: .release))]

/// Code that is not checked for memory safety says `unsafe`, and beside it why it is not wrong.
let safe: [SwiftSetting] = [.strictMemorySafety()]

// What uses a provider only where its trait is enabled, and says `#if` where it does. A provider's own tests use it
// always: they are built and run whatever the traits are.
let libfabric = Target.Dependency.target(name: "LibfabricProvider", condition: .when(traits: ["Libfabric"]))
let verbs = Target.Dependency.target(name: "VerbsProvider", condition: .when(traits: ["Verbs"]))

let http = Target.Dependency.target(name: "HTTP", condition: .when(traits: ["HTTP"]))
let tracing = [("Logging", "swift-log"), ("Tracing", "swift-distributed-tracing")].map {
    Target.Dependency.product(name: $0, package: $1, condition: .when(traits: ["HTTP"]))
}
let nio = ["NIOCore", "NIOPosix", "NIOHTTP1"].map {
    Target.Dependency.product(name: $0, package: "swift-nio", condition: .when(traits: ["HTTP"]))
}

let package = Package(
    name: "transfer-engine",
    products: [
        .library(name: "TransferEngine", targets: ["TransferEngine"]),
        // The C interface, with the Swift runtime inside: `make lib`.
        .library(name: "transferengine", type: .dynamic, targets: ["TransferEngineC"]),
        .library(name: "ExpertParallel", targets: ["ExpertParallel"]),
        .library(name: "Topology", targets: ["Topology"]),
        .library(name: "Doctor", targets: ["Doctor"]),
        .library(name: "EngineMetrics", targets: ["EngineMetrics"]),
        .library(name: "KVCacheTransfer", targets: ["KVCacheTransfer"]),
        .library(name: "TransferDirectory", targets: ["TransferDirectory"]),
        .library(name: "EtcdDirectory", targets: ["EtcdDirectory"]),
        .library(name: "KVRouter", targets: ["KVRouter"]),
        .library(name: "WeightTransfer", targets: ["WeightTransfer"]),
        .executable(name: "te", targets: ["te"]),
    ],
    traits: [
        .trait(name: "Libfabric", description: "TCP, EFA and verbs through libfabric (loaded at run time)"),
        .trait(name: "Verbs", description: "RDMA NICs through libibverbs (loaded at run time)"),
        .trait(name: "Authentication", description: "Signed descriptors and messages, with swift-crypto"),
        .trait(name: "Metrics", description: "Numbers for swift-metrics, in EngineMetrics only"),
        .trait(name: "HTTP", description: "The endpoint for Prometheus, etcd and the router, with swift-nio"),
        .default(enabledTraits: ["Libfabric", "Verbs", "Authentication", "Metrics", "HTTP"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser.git", from: "1.5.0"),
        .package(url: "https://github.com/apple/swift-crypto.git", from: "4.0.0"),
        .package(url: "https://github.com/apple/swift-metrics.git", from: "2.5.0"),
        .package(url: "https://github.com/apple/swift-nio.git", from: "2.80.0"),
        .package(url: "https://github.com/apple/swift-log.git", from: "1.6.0"),
        .package(url: "https://github.com/apple/swift-distributed-tracing.git", from: "1.3.0"),
    ],
    targets: [
        .target(name: "CPlatform"),
        .target(name: "CLibfabric"),
        .target(name: "CVerbs"),
        .target(name: "CHwloc"),
        .target(name: "Doctor", swiftSettings: strict + safe),
        .target(name: "Topology", dependencies: ["TransferCore", "CHwloc"], swiftSettings: strict + safe),
        .target(name: "TransferCore", swiftSettings: hot + safe),
        .target(name: "Platform", dependencies: ["TransferCore", "CPlatform"], swiftSettings: hot + safe),
        .target(
            name: "SharedMemoryProvider", dependencies: ["TransferCore", "Platform", "CPlatform"],
            swiftSettings: hot + safe),
        .target(name: "SimulatedProvider", dependencies: ["TransferCore"], swiftSettings: hot + safe),
        .target(
            name: "LibfabricProvider", dependencies: ["TransferCore", "CPlatform", "CLibfabric"],
            swiftSettings: hot),
        .target(
            name: "VerbsProvider", dependencies: ["TransferCore", "Platform", "CPlatform", "CVerbs"],
            swiftSettings: hot + safe),
        .target(
            name: "TransferEngine",
            dependencies: [
                "TransferCore", "Platform", "CPlatform", "SharedMemoryProvider", "SimulatedProvider",
                libfabric, verbs,
                .product(
                    name: "Crypto", package: "swift-crypto", condition: .when(traits: ["Authentication"])),
            ],
            swiftSettings: hot + safe),
        .target(
            name: "EngineMetrics",
            dependencies: [
                "TransferEngine", http,
                .product(
                    name: "CoreMetrics", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
            ] + nio, swiftSettings: strict + safe),
        .target(name: "CTransferEngine"),
        // C types at every border: `unsafe` would be everywhere. Boundary.swift is where pointers of callers are read.
        .target(
            name: "TransferEngineC",
            dependencies: [
                "CTransferEngine", "TransferEngine", "KVCacheTransfer", "ExpertParallel", "WeightTransfer",
                "SharedMemoryProvider", "Platform", "CPlatform", libfabric, verbs,
            ],
            exclude: ["exports.map"], swiftSettings: hot,
            linkerSettings: [
                // Of the essentials of Foundation, which swift-crypto brings along and which do not name them by themselves.
                .linkedLibrary("_FoundationCollections"), .linkedLibrary("_FoundationCShims"),
                .unsafeFlags([
                    "-static-stdlib", "-Xlinker", "-soname=libtransferengine.so.0", "-Xlinker",
                    "--gc-sections",
                    "-Xlinker",
                    "--version-script=\(Context.packageDirectory)/Sources/TransferEngineC/exports.map",
                ]),
            ]),
        .target(
            name: "ExpertParallel", dependencies: ["TransferEngine", "Platform", "CPlatform"],
            swiftSettings: hot),
        .target(name: "KVCacheTransfer", dependencies: ["TransferEngine"], swiftSettings: hot + safe),
        .target(name: "TransferDirectory", dependencies: ["TransferEngine"], swiftSettings: hot + safe),
        .target(name: "HTTP", dependencies: nio, swiftSettings: strict + safe),
        .target(
            name: "EtcdDirectory", dependencies: ["TransferDirectory", "TransferEngine", http] + nio,
            swiftSettings: strict + safe),
        .target(
            name: "KVRouter",
            dependencies: ["KVCacheTransfer", "TransferDirectory", "EngineMetrics", http] + nio + tracing,
            swiftSettings: strict + safe),
        .target(
            name: "WeightTransfer", dependencies: ["TransferEngine", "TransferCore", "CPlatform"],
            swiftSettings: hot + safe),
        .target(
            name: "Simulation",
            dependencies: [
                "TransferEngine", "SimulatedProvider", "TransferCore", "KVCacheTransfer", "WeightTransfer",
                "ExpertParallel",
            ],
            swiftSettings: hot + safe),
        .executableTarget(
            name: "te",
            dependencies: [
                "TransferEngine", "KVCacheTransfer", "WeightTransfer", "ExpertParallel", "Simulation",
                "Platform", "Topology", "Doctor", "KVRouter", "EtcdDirectory", "TransferDirectory",
                "EngineMetrics", "CPlatform", libfabric, verbs,
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: hot),
        .executableTarget(
            name: "te-peer",
            dependencies: [
                "TransferEngine", libfabric, verbs,
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "IntegrationTests/peer", swiftSettings: strict),
        .testTarget(
            name: "TransferEngineTests",
            dependencies: ["TransferEngine", "SharedMemoryProvider", "Platform", "CPlatform"],
            swiftSettings: strict),
        .target(name: "CMemoryOrder", path: "Tests/CMemoryOrder"),
        .testTarget(
            name: "PlatformTests", dependencies: ["Platform", "CPlatform", "CMemoryOrder"],
            swiftSettings: strict),
        .testTarget(name: "TransferCoreTests", dependencies: ["TransferCore"], swiftSettings: strict),
        .testTarget(
            name: "SimulatedProviderTests", dependencies: ["SimulatedProvider", "TransferCore"],
            swiftSettings: strict),
        .testTarget(
            name: "ProviderConformanceTests",
            dependencies: [
                "TransferEngine", "SharedMemoryProvider", "SimulatedProvider", "Platform", "CPlatform",
                "CVerbsStandIn",
                libfabric, verbs,
            ],
            swiftSettings: strict),
        .testTarget(
            name: "SimulationTests", dependencies: ["TransferEngine", "SimulatedProvider", "Simulation"],
            swiftSettings: strict),
        .testTarget(
            name: "ExpertParallelTests",
            dependencies: [
                "ExpertParallel", "TransferEngine", "SimulatedProvider", "Platform", "CPlatform",
                "CAllocationCounter", libfabric,
            ],
            swiftSettings: strict),
        .testTarget(
            name: "KVCacheTransferTests", dependencies: ["KVCacheTransfer", "TransferEngine"],
            swiftSettings: strict),
        .testTarget(
            name: "TransferDirectoryTests",
            dependencies: ["TransferDirectory", "TransferEngine"],
            swiftSettings: strict),
        .testTarget(
            name: "EtcdDirectoryTests",
            dependencies: ["EtcdDirectory", "TransferDirectory", "TransferEngine", http],
            swiftSettings: strict),
        .testTarget(
            name: "KVRouterTests",
            dependencies: ["KVRouter", "KVCacheTransfer", "TransferDirectory", "TransferEngine", http] + nio
                + tracing
                + [
                    .product(
                        name: "InMemoryTracing", package: "swift-distributed-tracing",
                        condition: .when(traits: ["HTTP"]))
                ],
            swiftSettings: strict),
        .testTarget(
            name: "WeightTransferTests",
            dependencies: ["WeightTransfer", "TransferEngine", "Simulation", "CPlatform", libfabric],
            exclude: ["golden"], swiftSettings: strict),
        .testTarget(
            name: "TopologyTests", dependencies: ["Topology", "TransferCore"], exclude: ["machines"],
            swiftSettings: strict),
        .testTarget(
            name: "EngineMetricsTests",
            dependencies: [
                "EngineMetrics", "TransferEngine",
                .product(
                    name: "MetricsTestKit", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
            ], swiftSettings: strict),
        .testTarget(name: "DoctorTests", dependencies: ["Doctor"], swiftSettings: strict),
        .testTarget(name: "TidyTests", swiftSettings: strict + safe),
        .target(name: "CAllocationCounter", path: "Tests/CAllocationCounter"),
        .testTarget(
            name: "AllocationTests",
            dependencies: [
                "TransferEngine", "KVCacheTransfer", "SharedMemoryProvider", "CAllocationCounter", libfabric,
            ],
            swiftSettings: strict),
        .testTarget(
            name: "LibfabricProviderTests",
            dependencies: [
                "TransferCore", "TransferEngine", "CPlatform", "CLibfabric", "CFabricStandIn",
                "LibfabricProvider",
            ],
            swiftSettings: strict),
        .target(name: "CFabricStandIn", dependencies: ["CLibfabric"], path: "Fuzz/StandIn"),
        .testTarget(
            name: "FuzzTests",
            dependencies: [
                "TransferCore", "TransferEngine", "SharedMemoryProvider", "Platform", "CPlatform",
                "CFabricStandIn", "KVCacheTransfer", "WeightTransfer", "ExpertParallel", "TransferDirectory",
                libfabric, verbs,
            ],
            path: "Fuzz/Targets", swiftSettings: strict),
        .executableTarget(
            name: "verbs-host-cost",
            dependencies: [
                "TransferCore", "TransferEngine", "Platform", "CPlatform", "CVerbsStandIn",
                "CAllocationCounter", verbs,
            ],
            path: "Tests/VerbsHostCost", exclude: ["run"], swiftSettings: safe),
        .target(name: "CVerbsStandIn", dependencies: ["CVerbs"], path: "Tests/CVerbsStandIn"),
        .testTarget(
            name: "VerbsProviderTests",
            dependencies: [
                "TransferCore", "TransferEngine", "Platform", "CPlatform", "CVerbs", "CVerbsStandIn",
                "CAllocationCounter", "VerbsProvider",
            ],
            swiftSettings: strict + [.strictMemorySafety()]),
    ],
    swiftLanguageModes: [.v6]
)

// For a build of some suites only: compiling all of them once more takes minutes.
if let suites = Context.environment["TE_SUITES"]?.split(separator: ",").map(String.init) {
    package.targets.removeAll { $0.type == .test && !suites.contains($0.name) }
}
