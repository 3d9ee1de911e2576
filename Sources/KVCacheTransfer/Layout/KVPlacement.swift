/// Where the pages of one rank lie: for each of the rank's layers one plane, or two when keys and values are apart.
public struct KVPlacement: Hashable, Sendable {
    /// Equally long pages, `stride` bytes apart.
    public struct Plane: Hashable, Sendable {
        /// Which of the rank's regions.
        public var region: Int
        /// Bytes of the region before page 0.
        public var offset: Int
        /// Bytes from one page to the next.
        public var stride: Int
        /// Pages.
        public var pageCount: Int

        /// Describes a plane.
        public init(region: Int = 0, offset: Int, stride: Int, pageCount: Int) {
            self.region = region
            self.offset = offset
            self.stride = stride
            self.pageCount = pageCount
        }
    }

    /// The planes of each layer of the rank's stage, in the order of the layers.
    public var layers: [[Plane]]

    /// Describes a placement.
    public init(layers: [[Plane]]) { self.layers = layers }

    /// All planes one after the other in one region, each of `pageCount` pages without gaps.
    public static func contiguous(_ layout: KVLayout, rank: Int, pageCount: Int) -> KVPlacement {
        var offset = 0
        return KVPlacement(
            layers: layout.stages[rank / layout.tensorRanks].map { layer in
                let group = layout.group(ofLayer: layer) ?? 0
                let format = layout.formats[group]
                let pages = format.pageBytes(layout.model.groups[group], localHeads: layout.localHeads(group))
                return pages.map { bytes in
                    defer { offset += bytes * pageCount }
                    return Plane(offset: offset, stride: bytes, pageCount: pageCount)
                }
            })
    }

    /// Bytes of each region that the planes need.
    public func regionBytes(_ layout: KVLayout, rank: Int) -> [Int] {
        var bytes: [Int] = []
        for (layer, planes) in zip(layout.stages[rank / layout.tensorRanks], layers) {
            let group = layout.group(ofLayer: layer) ?? 0
            let page = layout.formats[group].pageBytes(
                layout.model.groups[group], localHeads: layout.localHeads(group))
            for (plane, pageBytes) in zip(planes, page) {
                while bytes.count <= plane.region { bytes.append(0) }
                let end = plane.offset + (plane.pageCount - 1) * plane.stride + pageBytes
                bytes[plane.region] = max(bytes[plane.region], end)
            }
        }
        return bytes
    }

    /// One of the planes of a layer of the model, on a rank that holds the layer.
    func plane(_ layout: KVLayout, rank: Int, layer: Int, _ plane: Int) -> Plane {
        layers[layer - layout.stages[rank / layout.tensorRanks].lowerBound][plane]
    }

    /// Checks that the planes are what the layout says and lie inside of their regions.
    /// - Throws: `KVError.Code.invalidLayout`, with the layer.
    public func validate(_ layout: KVLayout, rank: Int, regionBytes: [Int]) throws(KVError) {
        let stage = layout.stages[rank / layout.tensorRanks]
        guard layers.count == stage.count else {
            throw KVError(
                .invalidLayout, "rank \(rank): \(layers.count) layers are placed, it has \(stage.count)")
        }
        for (layer, planes) in zip(stage, layers) {
            guard let group = layout.group(ofLayer: layer) else { continue }
            let pages = layout.formats[group].pageBytes(
                layout.model.groups[group], localHeads: layout.localHeads(group))
            guard planes.count == pages.count else {
                throw KVError(
                    .invalidLayout, "rank \(rank), layer \(layer): \(planes.count) planes of \(pages.count)")
            }
            for (plane, pageBytes) in zip(planes, pages) {
                guard plane.fits(pageBytes, regionBytes) else {
                    throw KVError(
                        .invalidLayout, "rank \(rank), layer \(layer): \(plane) is not in its region")
                }
            }
        }
    }
}

extension KVPlacement.Plane {
    fileprivate func fits(_ pageBytes: Int, _ regionBytes: [Int]) -> Bool {
        guard regionBytes.indices.contains(region), offset >= 0, pageCount >= 1, stride >= pageBytes else {
            return false
        }
        let (last, isLarge) = (pageCount - 1).multipliedReportingOverflow(by: stride)
        let (end, isLarger) = last.addingReportingOverflow(offset)
        return !isLarge && !isLarger && end <= regionBytes[region] - pageBytes
    }
}
