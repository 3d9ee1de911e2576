/// A range of planes, rows and columns of a tensor. Vectors are one column, matrices one plane.
public struct Box: Hashable, Sendable, CustomStringConvertible {
    /// The first plane.
    public var firstPlane: Int32
    /// Behind the last plane.
    public var endPlane: Int32
    /// The first row.
    public var firstRow: Int32
    /// Behind the last row.
    public var endRow: Int32
    /// The first column.
    public var firstColumn: Int32
    /// Behind the last column.
    public var endColumn: Int32

    /// An axis of a box.
    enum Axis: Int, CaseIterable { case plane, row, column }

    public init(planes: Range<Int> = 0..<1, rows: Range<Int>, columns: Range<Int>) {
        firstPlane = Int32(planes.lowerBound)
        endPlane = Int32(planes.upperBound)
        firstRow = Int32(rows.lowerBound)
        endRow = Int32(rows.upperBound)
        firstColumn = Int32(columns.lowerBound)
        endColumn = Int32(columns.upperBound)
    }

    /// All of a tensor of this shape of one to three dimensions.
    public init(shape: [Int]) {
        let last = shape.count > 1 ? shape[shape.count - 1] : 1
        let rows = shape.count > 1 ? shape[shape.count - 2] : shape[0]
        self.init(planes: 0..<(shape.count > 2 ? shape[0] : 1), rows: 0..<rows, columns: 0..<last)
    }

    /// The axis of dimension `dimension` of a tensor with `rank` dimensions.
    static func axis(_ dimension: Int, rank: Int) -> Axis {
        rank == 1 ? .row : Axis(rawValue: dimension + 3 - rank) ?? .column
    }

    /// Planes.
    @inline(__always) public var planes: Range<Int> { Int(firstPlane)..<Int(endPlane) }
    /// Rows.
    @inline(__always) public var rows: Range<Int> { Int(firstRow)..<Int(endRow) }
    /// Columns.
    @inline(__always) public var columns: Range<Int> { Int(firstColumn)..<Int(endColumn) }
    /// Elements.
    @inline(__always) public var count: Int { planes.count * rows.count * columns.count }
    /// Whether there are none.
    @inline(__always) public var isEmpty: Bool {
        firstPlane >= endPlane || firstRow >= endRow || firstColumn >= endColumn
    }

    subscript(axis: Axis) -> Range<Int> {
        get {
            switch axis {
            case .plane: planes
            case .row: rows
            case .column: columns
            }
        }
        set {
            switch axis {
            case .plane: (firstPlane, endPlane) = (Int32(newValue.lowerBound), Int32(newValue.upperBound))
            case .row: (firstRow, endRow) = (Int32(newValue.lowerBound), Int32(newValue.upperBound))
            case .column:
                (firstColumn, endColumn) = (Int32(newValue.lowerBound), Int32(newValue.upperBound))
            }
        }
    }

    /// What both have; nil when that is nothing.
    @inline(__always) public func intersection(_ other: Box) -> Box? {
        var result = self
        result.firstPlane = max(firstPlane, other.firstPlane)
        result.endPlane = min(endPlane, other.endPlane)
        result.firstRow = max(firstRow, other.firstRow)
        result.endRow = min(endRow, other.endRow)
        result.firstColumn = max(firstColumn, other.firstColumn)
        result.endColumn = min(endColumn, other.endColumn)
        return result.isEmpty ? nil : result
    }

    /// Whether all of `other` lies in this.
    public func contains(_ other: Box) -> Bool { other.isEmpty || intersection(other) == other }

    /// The same box elsewhere.
    func moved(planes: Int, rows: Int, columns: Int) -> Box {
        var result = self
        result.firstPlane += Int32(planes)
        result.endPlane += Int32(planes)
        result.firstRow += Int32(rows)
        result.endRow += Int32(rows)
        result.firstColumn += Int32(columns)
        result.endColumn += Int32(columns)
        return result
    }

    /// Rows for columns.
    var transposed: Box { Box(planes: planes, rows: columns, columns: rows) }

    public var description: String {
        (planes == 0..<1 ? "" : "planes \(planes) ") + "rows \(rows) columns \(columns)"
    }
}
