/// Where the parameters of a model are to lie among inference ranks.
public struct InferenceLayout: Hashable, Sendable {
    /// Number of inference ranks.
    public var worldSize: Int
    /// Bytes of one version's region on each rank.
    public var regionBytes: [Int]
    /// What is to be there.
    public var targets: [Target]

    public init(worldSize: Int, regionBytes: [Int], targets: [Target]) {
        self.worldSize = worldSize
        self.regionBytes = regionBytes
        self.targets = targets
    }
}

/// A tensor of an inference engine, made of slices of the trainer's parameters. Ranks that hold equal content share one.
public struct Target: Hashable, Sendable {
    /// As the inference engine calls it, for example `model.layers.3.self_attn.qkv_proj.weight`.
    public var name: String
    /// The local shape, of one to three dimensions.
    public var shape: [Int]
    /// What its elements are.
    public var type: DataType
    /// Whether there is a 32-bit scale for each block of 128 rows and 128 columns of each plane.
    public var hasBlockScales: Bool
    /// What it is made of; their places tile it.
    public var parts: [Part]
    /// Where it goes.
    public var replicas: [Replica]

    /// Rows and columns of a block with one scale.
    public static let blockSize = 128

    /// A slice of a parameter, and where it goes.
    public struct Part: Hashable, Sendable {
        /// Index into the model's parameters.
        public var source: Int
        /// Which part of the parameter.
        public var box: Box
        /// Where it goes in the target.
        public var place: Box
        /// Whether rows become columns.
        public var isTransposed: Bool

        public init(source: Int, box: Box, firstRow: Int = 0, firstPlane: Int = 0, isTransposed: Bool = false)
        {
            self.source = source
            self.box = box
            self.isTransposed = isTransposed
            let turned = isTransposed ? box.transposed : box
            place = turned.moved(
                planes: firstPlane - turned.planes.lowerBound, rows: firstRow - turned.rows.lowerBound,
                columns: -turned.columns.lowerBound)
        }

        /// The part of the parameter that goes to `target`, which lies in `place`.
        func source(of target: Box) -> Box {
            let moved = target.moved(
                planes: -place.planes.lowerBound, rows: -place.rows.lowerBound,
                columns: -place.columns.lowerBound)
            let turned = isTransposed ? moved.transposed : moved
            return turned.moved(
                planes: box.planes.lowerBound, rows: box.rows.lowerBound, columns: box.columns.lowerBound)
        }

        /// Where a part of the parameter, which lies in `box`, goes.
        func target(of source: Box) -> Box {
            let moved = source.moved(
                planes: -box.planes.lowerBound, rows: -box.rows.lowerBound, columns: -box.columns.lowerBound)
            let turned = isTransposed ? moved.transposed : moved
            return turned.moved(
                planes: place.planes.lowerBound, rows: place.rows.lowerBound,
                columns: place.columns.lowerBound)
        }
    }

    /// A rank that gets the target, and where in its region.
    public struct Replica: Hashable, Sendable {
        /// Inference rank.
        public var rank: Int32
        /// First byte in the region.
        public var offset: Int
        /// First byte of the scales; -1 without.
        public var scaleOffset: Int

        public init(rank: Int, offset: Int, scaleOffset: Int = -1) {
            self.rank = Int32(rank)
            self.offset = offset
            self.scaleOffset = scaleOffset
        }
    }

    public init(
        name: String, shape: [Int], type: DataType, hasBlockScales: Bool = false, parts: [Part],
        replicas: [Replica] = []
    ) {
        self.name = name
        self.shape = shape
        self.type = type
        self.hasBlockScales = hasBlockScales
        self.parts = parts
        self.replicas = replicas
    }

    /// All of it.
    public var box: Box { Box(shape: shape) }
    /// Bytes without scales.
    public var byteCount: Int { box.count * type.byteCount }
    /// Rows and columns of the scales of a plane.
    public var scaleShape: (rows: Int, columns: Int) {
        let size = Self.blockSize
        return ((box.rows.count + size - 1) / size, (box.columns.count + size - 1) / size)
    }
    /// Bytes of the scales; 0 without.
    public var scaleByteCount: Int {
        hasBlockScales ? box.planes.count * scaleShape.rows * scaleShape.columns * 4 : 0
    }
}
