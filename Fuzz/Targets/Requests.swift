#if HTTP
    // What clients of the router send. RequestBody.swift is here by a link: the router itself needs an HTTP server, which
    // would be instrumented for minutes.
    extension Target {
        /// `RequestBody`.
        static let requests = Target(
            name: "requests",
            seeds: {
                [
                    #"{"model": "m", "prompt": "Hello \u00e9", "max_tokens": 12, "stream": true}"#,
                    #"{"messages":[{"role":"user","content":"\"}"}],"n":1e3,"a":[[],{},null,-0.5]}"#, "{}",
                ].map { Array($0.utf8) }
            },
            run: { bytes in
                guard var body = try? RequestBody(copy bytes) else { return }
                _ = body.integer("max_tokens")
                let text = body.bytes
                guard let again = try? RequestBody(text) else {
                    return require(false, "what was passed on is no request")
                }
                require(again.bytes == text, "a request changes when it is passed on")
                body.set("kv_transfer_params", to: "{}")
                require((try? RequestBody(body.bytes)) != nil, "what was added makes it no request")
            })
    }
#endif
