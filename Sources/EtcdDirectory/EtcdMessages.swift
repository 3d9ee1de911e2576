#if HTTP
    internal import FoundationEssentials

    // The messages of etcd's JSON gateway (api/etcdserverpb/rpc.proto and api/mvccpb/kv.proto of etcd 3.4): bytes are
    // base64, 64-bit numbers are strings, and a field whose value is zero is left out.

    /// Of every answer: when it was so.
    struct EtcdHeader: Decodable {
        var revision: String?
    }

    struct EtcdKeyValue: Decodable {
        var key: Data
        var value: Data?
    }

    struct EtcdRangeRequest: Encodable {
        var key: Data
        var range_end: Data
    }

    struct EtcdRangeResponse: Decodable {
        var header: EtcdHeader
        var kvs: [EtcdKeyValue]?
    }

    struct EtcdPutRequest: Encodable {
        var key: Data
        var value: Data
        var lease: String
    }

    struct EtcdDeleteRequest: Encodable {
        var key: Data
    }

    struct EtcdLeaseGrantRequest: Encodable {
        var TTL: String
    }

    struct EtcdLeaseGrantResponse: Decodable {
        var ID: String?
        var TTL: String?
    }

    /// Of `keepalive` and `revoke`.
    struct EtcdLeaseRequest: Encodable {
        var ID: String
    }

    /// A lease that is not there any more has no time left.
    struct EtcdKeepAliveResponse: Decodable {
        struct Result: Decodable {
            var TTL: String?
        }
        var result: Result?
    }

    struct EtcdWatchRequest: Encodable {
        struct Create: Encodable {
            var key: Data
            var range_end: Data
            var start_revision: String
        }
        var create_request: Create
    }

    struct EtcdWatchResponse: Decodable {
        struct Event: Decodable {
            /// Left out for a put, `DELETE` otherwise.
            var type: String?
            var kv: EtcdKeyValue
        }
        struct Result: Decodable {
            var canceled: Bool?
            var events: [Event]?
        }
        var result: Result?
    }

    struct EtcdFailure: Decodable {
        var error: String?
        var message: String?
    }

    struct EtcdNothing: Decodable {}
#endif
