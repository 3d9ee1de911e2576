public import TransferEngine

/// What a decoder and a prefiller say to each other. docs/kv-protocol.md says when.
public enum KVMessage: Hashable, Sendable {
    /// Decoder: where I want what; may we work together?
    case hello(Hello)
    /// Prefiller: yes.
    case welcome(Welcome)
    /// Prefiller: no, or no longer.
    case refuse(session: UInt64, reason: KVError)
    /// Decoder: compute this, and write it there.
    case prefill(Prefill)
    /// Decoder: write no more for this request, and say when it is quiet.
    case cancel(session: UInt64, request: UInt64)
    /// Prefiller: the request has ended before it was complete.
    case receipt(Receipt)
    /// Either: I live.
    case heartbeat(Heartbeat)
    /// Decoder: the session is over.
    case goodbye(session: UInt64)
    /// Prefiller: what has been written of a layer, or of the tail. Only for decoders that want it.
    case digests(Digests)

    /// A decoder introduces itself: once for each pair, and again after it has revoked its regions.
    public struct Hello: Hashable, Sendable {
        /// Random, chosen by the decoder; no other session has it.
        public var session: UInt64
        /// For people, and to tell a decoder that has come back.
        public var name: String
        /// Where its messages are received.
        public var address: EngineAddress
        /// Its layout.
        public var layout: KVLayout
        /// Where its pages are, for each rank.
        public var ranks: [RankTarget]
        /// Whether it compares what arrives with digests of what was sent.
        public var wantsDigests = false
    }

    /// The pages of one of the decoder's ranks.
    public struct RankTarget: Hashable, Sendable {
        /// The planes.
        public var placement: KVPlacement
        /// The regions that they lie in.
        public var regions: [RemoteRegion]
    }

    /// The prefiller's answer to a hello.
    public struct Welcome: Hashable, Sendable {
        /// The session of the hello.
        public var session: UInt64
        /// For people.
        public var name: String
        /// Its layout, from which the decoder computes what to wait for.
        public var layout: KVLayout
    }

    /// One request.
    public struct Prefill: Hashable, Sendable {
        /// The session.
        public var session: UInt64
        /// Its number in the session; a decoder counts up.
        public var request: UInt64
        /// All requests of the session below this number have ended for the decoder.
        public var oldest: UInt64
        /// The tokens.
        public var span: TokenSpan
        /// Whether each layer has an immediate of its own.
        public var isLayerwise: Bool
        /// The first immediate, for each rank.
        public var immediates: [UInt32]
        /// The pages to be written, for each group.
        public var tables: [PageTable]
        /// Where the last hidden state or the logits go.
        public var tail: Tail?
        /// How long the decoder waits, in milliseconds.
        public var timeoutMilliseconds: UInt32
        /// What the prefiller's model needs: token ids and parameters, in a form that the two applications agree on.
        public var input: [UInt8]
    }

    /// A place for the tail of a request.
    public struct Tail: Hashable, Sendable {
        /// Which of the decoder's ranks.
        public var rank: Int
        /// Which of its regions.
        public var region: Int
        /// Bytes before it.
        public var offset: Int
        /// Bytes.
        public var byteCount: Int

        /// Describes a place.
        public init(rank: Int, region: Int, offset: Int, byteCount: Int) {
            self.rank = rank
            self.region = region
            self.offset = offset
            self.byteCount = byteCount
        }
    }

    /// The prefiller's last word on a request that it did not complete.
    public struct Receipt: Hashable, Sendable {
        /// The session.
        public var session: UInt64
        /// The request.
        public var request: UInt64
        /// Whether no byte of the request can land any more. If not, the decoder revokes before it uses the pages again.
        public var isQuiet: Bool
        /// Why.
        public var reason: KVError
    }

    /// The digests of all writes of one layer, or of the tail of a request.
    public struct Digests: Hashable, Sendable {
        /// The session.
        public var session: UInt64
        /// The request.
        public var request: UInt64
        /// The layer; nil is the tail.
        public var layer: Int?
        /// One for each of the decoder's tensor ranks; of the tail there is one.
        public var ranks: [Digest]
    }

    /// A sign of life, and what else is worth knowing now and then.
    public struct Heartbeat: Hashable, Sendable {
        /// The session.
        public var session: UInt64
        /// Decoder: all requests below this number have ended. Prefiller: tokens that wait to be computed.
        public var number: UInt64
        /// Prefiller: whether it takes no new requests.
        public var isDraining: Bool
    }
}
