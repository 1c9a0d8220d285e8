//! Every path, method, parameter and answer of REST, in one table: requests are dispatched by it, queries are checked
//! against it, and the OpenAPI document is made from it, so that none of them can say something else.

use krita_proto::routing::{KEY_BYTES_MAX, SCAN_ITEMS_MAX, TIMEOUT_MS_MAX};

use super::refusal::Refusal;

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Endpoint {
    GetKey,
    PutKey,
    DeleteKey,
    Scan,
    Batch,
    Cluster,
    Nodes,
    Shards,
    OpenApi,
    Metrics,
    Live,
    Ready,
    NodeHealth,
    ClusterHealth,
}

/// Who may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Who holds a token.
    Token,
    /// Everyone. A token that is given must be a good one all the same, and shows more.
    Open,
}

/// Where a parameter stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Location {
    Path,
    Query,
    Header,
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Text (or percent-encoded bytes) of a length.
    Text { least: usize, most: usize },
    /// Text that a regular expression describes, and its shortest.
    Pattern(&'static str, usize),
    /// A whole number.
    Number { least: u32, most: u32 },
    /// `true` or `false`.
    Switch,
    /// The same; given by itself it is on.
    Flag,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

/// One parameter of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) location: Location,
    pub(crate) kind: Kind,
    pub(crate) description: &'static str,
}

/// An answer that is no error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) description: &'static str,
    /// Each media type with the name of its schema.
    pub(crate) forms: &'static [(&'static str, &'static str)],
    /// It carries the version as an entity tag.
    pub(crate) has_etag: bool,
}

/// One method of one path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) endpoint: Endpoint,
    pub(crate) method: &'static str,
    pub(crate) id: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) description: &'static str,
    pub(crate) access: Access,
    pub(crate) parameters: &'static [Parameter],
    /// Each media type of the request's body with the name of its schema.
    pub(crate) body: &'static [(&'static str, &'static str)],
    pub(crate) answers: &'static [Answer],
    /// Statuses that come with the error shape.
    pub(crate) errors: &'static [u16],
}

/// One path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) path: &'static str,
    /// Its methods, for 405. A path that is read can be asked for its head alone.
    pub(crate) allow: &'static str,
    pub(crate) operations: &'static [Operation],
}

const KEY: Parameter = Parameter {
    name: "key",
    location: Location::Path,
    kind: Kind::Text { least: 1, most: KEY_BYTES_MAX },
    description: "The key: 1 to 4,096 bytes, percent-encoded; all that follows /v1/kv/, slashes included.",
};
const KEY_ENCODING: Parameter = Parameter {
    name: "key_encoding",
    location: Location::Query,
    kind: Kind::OneOf(&["plain", "base64url"]),
    description: "How keys stand in this target: plain (their own bytes, percent-encoded), or base64url (RFC 4648, \
                  section 5, padding optional), which no proxy or library can change.",
};
const CONSISTENCY: Parameter = Parameter {
    name: "consistency",
    location: Location::Query,
    kind: Kind::OneOf(&["linearizable", "available", "any"]),
    description: "What the read may miss: nothing; nothing, unless no leader confirms it in time; or whatever the \
                  replica that is asked has not applied yet. An answer that was not confirmed says so, with the log \
                  entry up to which it is: krita-stale and krita-applied-index, or stale in a page's versions.",
};
const TIMEOUT: Parameter = Parameter {
    name: "timeout_ms",
    location: Location::Query,
    kind: Kind::Number { least: 1, most: TIMEOUT_MS_MAX },
    description: "How long the request may take, in milliseconds; without it, the node's own limit holds.",
};
const IF_MATCH: Parameter = Parameter {
    name: "If-Match",
    location: Location::Header,
    kind: Kind::Pattern(r#"^"[1-9][0-9]{0,17}"$"#, 3),
    description: "The key must have this version, as ETag gave it; otherwise 412, with the version that it has.",
};
const IF_NONE_MATCH_PUT: Parameter = Parameter {
    name: "If-None-Match",
    location: Location::Header,
    kind: Kind::OneOf(&["*"]),
    description: "*: the key must be absent; otherwise 412.",
};
const IF_NONE_MATCH_GET: Parameter = Parameter {
    name: "If-None-Match",
    location: Location::Header,
    kind: Kind::Pattern(r#"^"[1-9][0-9]{0,17}"$"#, 3),
    description: "If the key has this version, the answer is 304 without a body.",
};
const REQUEST_ID: Parameter = Parameter {
    name: "Krita-Request-Id",
    location: Location::Header,
    kind: Kind::Pattern(
        "^session=[1-9a-f][0-9a-f]{0,15}, sequence=[1-9][0-9]{0,8}(, lowest_unacknowledged=1)?\
         (, register_until_ms=[1-9][0-9]{0,15})?$",
        21,
    ),
    description: "Makes a write that is sent again apply once: session=<hexadecimal>, sequence=<n>, \
                  lowest_unacknowledged=<n>, register_until_ms=<log time>. See docs/protocol.md.",
};
const VERBOSE: Parameter = Parameter {
    name: "verbose",
    location: Location::Query,
    kind: Kind::Flag,
    description: "Tell what was looked at.",
};

/// Statuses that any operation with a token can end with.
const READ_ERRORS: &[u16] = &[400, 401, 403, 421, 429, 431, 500, 503, 504];
const KEY_ERRORS: &[u16] = &[400, 401, 403, 404, 406, 412, 421, 429, 431, 500, 503, 504];
const SCAN_ERRORS: &[u16] = &[400, 401, 403, 406, 421, 429, 431, 500, 503, 504];
const WRITE_ERRORS: &[u16] = &[400, 401, 403, 408, 412, 413, 421, 429, 431, 500, 503, 504, 507, 520];
const BATCH_ERRORS: &[u16] = &[400, 401, 403, 408, 413, 415, 421, 429, 431, 500, 503, 504];

/// The whole of REST.
pub(crate) const ROUTES: &[Route] = &[
    Route {
        path: "/v1/kv/{key}",
        allow: "GET, HEAD, PUT, DELETE",
        operations: &[GET_KEY, HEAD_KEY, PUT_KEY, DELETE_KEY],
    },
    Route { path: "/v1/scan", allow: "GET, HEAD", operations: &[SCAN] },
    Route { path: "/v1/batch", allow: "POST", operations: &[BATCH] },
    Route { path: "/v1/cluster", allow: "GET, HEAD", operations: &[CLUSTER] },
    Route { path: "/v1/nodes", allow: "GET, HEAD", operations: &[NODES] },
    Route { path: "/v1/shards", allow: "GET, HEAD", operations: &[SHARDS] },
    Route { path: "/v1/openapi.json", allow: "GET, HEAD", operations: &[OPEN_API] },
    Route { path: "/metrics", allow: "GET, HEAD", operations: &[METRICS] },
    Route { path: "/livez", allow: "GET, HEAD", operations: &[LIVE] },
    Route { path: "/readyz", allow: "GET, HEAD", operations: &[READY] },
    Route { path: "/healthz", allow: "GET, HEAD", operations: &[HEALTHZ] },
    Route { path: "/healthcheck", allow: "GET, HEAD", operations: &[NODE_HEALTH] },
    Route { path: "/cluster/healthcheck", allow: "GET, HEAD", operations: &[CLUSTER_HEALTH] },
];

const GET_KEY: Operation = Operation {
    endpoint: Endpoint::GetKey,
    method: "GET",
    id: "getKey",
    summary: "Read a key",
    description: "The value as bytes, or with its version and text as JSON (values up to 4 MiB), as Accept asks.",
    access: Access::Token,
    parameters: &[KEY, KEY_ENCODING, CONSISTENCY, TIMEOUT, IF_NONE_MATCH_GET],
    body: &[],
    answers: &[
        Answer {
            status: 200,
            description: "The value.",
            forms: &[("application/octet-stream", "Bytes"), ("application/json", "Item")],
            has_etag: true,
        },
        Answer { status: 304, description: "The caller has this version.", forms: &[], has_etag: true },
    ],
    errors: KEY_ERRORS,
};

const HEAD_KEY: Operation = Operation {
    method: "HEAD",
    id: "headKey",
    summary: "Look whether a key is there",
    description: "As GET, without the value.",
    answers: &[
        Answer { status: 200, description: "The key is there.", forms: &[], has_etag: true },
        Answer { status: 304, description: "The caller has this version.", forms: &[], has_etag: true },
    ],
    ..GET_KEY
};

const PUT_KEY: Operation = Operation {
    endpoint: Endpoint::PutKey,
    method: "PUT",
    id: "putKey",
    summary: "Write a key",
    description: "Sets the value: the body's bytes, or, with Content-Type application/json, what its value or \
                  value_base64 says. Durable on a majority of the shard's replicas when it is answered.",
    access: Access::Token,
    parameters: &[KEY, KEY_ENCODING, TIMEOUT, IF_MATCH, IF_NONE_MATCH_PUT, REQUEST_ID],
    body: &[("application/octet-stream", "Bytes"), ("application/json", "PutBody")],
    answers: &[Answer {
        status: 200,
        description: "Written; this is its version.",
        forms: &[("application/json", "Written")],
        has_etag: true,
    }],
    errors: WRITE_ERRORS,
};

const DELETE_KEY: Operation = Operation {
    endpoint: Endpoint::DeleteKey,
    method: "DELETE",
    id: "deleteKey",
    summary: "Remove a key",
    description: "An absent key stays absent: existed says which it was.",
    parameters: &[KEY, KEY_ENCODING, TIMEOUT, IF_MATCH, REQUEST_ID],
    body: &[],
    answers: &[Answer {
        status: 200,
        description: "The key is absent now.",
        forms: &[("application/json", "Deleted")],
        has_etag: false,
    }],
    ..PUT_KEY
};

const SCAN: Operation = Operation {
    endpoint: Endpoint::Scan,
    method: "GET",
    id: "scan",
    summary: "Read keys in order",
    description: "Keys of all shards in the order of their bytes. As JSON a page of at most limit items, with the \
                  cursor of the next; as application/x-ndjson a stream of items, whose last line is the end.",
    access: Access::Token,
    parameters: &[
        Parameter {
            name: "prefix",
            location: Location::Query,
            kind: Kind::Text { least: 0, most: KEY_BYTES_MAX + 1 },
            description: "Only keys that begin with this.",
        },
        Parameter {
            name: "start",
            location: Location::Query,
            kind: Kind::Text { least: 0, most: KEY_BYTES_MAX + 1 },
            description: "From this key on, inclusive.",
        },
        Parameter {
            name: "end",
            location: Location::Query,
            kind: Kind::Text { least: 0, most: KEY_BYTES_MAX + 1 },
            description: "Up to this key, exclusive.",
        },
        Parameter {
            name: "keys_only",
            location: Location::Query,
            kind: Kind::Switch,
            description: "Leave the values out.",
        },
        Parameter {
            name: "limit",
            location: Location::Query,
            kind: Kind::Number { least: 1, most: SCAN_ITEMS_MAX as u32 },
            description: "Most items of the answer; a page of JSON has 1,000 otherwise, and ends earlier where its \
                          values are large; a stream goes on to the end of the range.",
        },
        Parameter {
            name: "cursor",
            location: Location::Query,
            kind: Kind::Pattern("^AQ[A-Za-z0-9_-]+$", 8),
            description: "Where the page before ended, as its answer said. The rest of the query must be the same.",
        },
        KEY_ENCODING,
        CONSISTENCY,
        TIMEOUT,
    ],
    body: &[],
    answers: &[Answer {
        status: 200,
        description: "A page, or a stream.",
        forms: &[("application/json", "Page"), ("application/x-ndjson", "Bytes")],
        has_etag: false,
    }],
    errors: SCAN_ERRORS,
};

const BATCH: Operation = Operation {
    endpoint: Endpoint::Batch,
    method: "POST",
    id: "batch",
    summary: "Do many operations at once",
    description: "Operations on one shard are atomic: all are applied, or none is; different shards are \
                  independent of each other. Each operation has its own result.",
    access: Access::Token,
    parameters: &[TIMEOUT, REQUEST_ID],
    body: &[("application/json", "BatchBody")],
    answers: &[
        Answer {
            status: 200,
            description: "All was done.",
            forms: &[("application/json", "BatchResults")],
            has_etag: false,
        },
        Answer {
            status: 207,
            description: "Some was not done, or may not have been: see each result.",
            forms: &[("application/json", "BatchResults")],
            has_etag: false,
        },
    ],
    errors: BATCH_ERRORS,
};

const CLUSTER: Operation = Operation {
    endpoint: Endpoint::Cluster,
    method: "GET",
    id: "cluster",
    summary: "The cluster and its members",
    description: "As this node knows it.",
    access: Access::Token,
    parameters: &[],
    body: &[],
    answers: &[Answer {
        status: 200,
        description: "The cluster.",
        forms: &[("application/json", "Cluster")],
        has_etag: false,
    }],
    errors: READ_ERRORS,
};

const NODES: Operation = Operation {
    endpoint: Endpoint::Nodes,
    id: "nodes",
    summary: "The state of every node",
    description: "Asked of each; one that does not answer within 1.5 s is shown as unreachable.",
    answers: &[Answer {
        status: 200,
        description: "Every member.",
        forms: &[("application/json", "Nodes")],
        has_etag: false,
    }],
    ..CLUSTER
};

const SHARDS: Operation = Operation {
    endpoint: Endpoint::Shards,
    id: "shards",
    summary: "Where each shard is",
    description: "Its replicas, and its leader as far as this node knows.",
    answers: &[Answer {
        status: 200,
        description: "Every shard.",
        forms: &[("application/json", "Shards")],
        has_etag: false,
    }],
    ..CLUSTER
};

const OPEN_API: Operation = Operation {
    endpoint: Endpoint::OpenApi,
    id: "openApi",
    summary: "This document",
    description: "OpenAPI 3.1.",
    access: Access::Open,
    answers: &[Answer {
        status: 200,
        description: "The document.",
        forms: &[("application/json", "Anything")],
        has_etag: false,
    }],
    errors: OPEN_ERRORS,
    ..CLUSTER
};

const METRICS: Operation = Operation {
    endpoint: Endpoint::Metrics,
    id: "metrics",
    summary: "What this node counts",
    description: "In the text format of Prometheus, version 0.0.4, which takes the token as authorization credentials. \
                  All cores together; a core that does not answer has no lines.",
    parameters: &[Parameter {
        name: "detail",
        location: Location::Query,
        kind: Kind::OneOf(&["shards"]),
        description: "Also some lines for each shard on this node.",
    }],
    answers: &[Answer {
        status: 200,
        description: "The metrics.",
        forms: &[("text/plain", "Bytes")],
        has_etag: false,
    }],
    ..CLUSTER
};

const OPEN_ERRORS: &[u16] = &[400, 401, 421, 429, 431];

const LIVE: Operation = Operation {
    endpoint: Endpoint::Live,
    method: "GET",
    id: "live",
    summary: "Whether this process works",
    description: "Needs no quorum and no other node: for those who restart what hangs.",
    access: Access::Open,
    parameters: &[VERBOSE],
    body: &[],
    answers: &[Answer {
        status: 200,
        description: "It does.",
        forms: &[("application/json", "Health")],
        has_etag: false,
    }],
    errors: OPEN_ERRORS,
};

/// What tells whether something is well.
const HEALTH_ANSWERS: &[Answer] = &[
    Answer {
        status: 200,
        description: "It is well.",
        forms: &[("application/json", "Health")],
        has_etag: false,
    },
    Answer {
        status: 503,
        description: "It is not.",
        forms: &[("application/json", "Health")],
        has_etag: false,
    },
];

const READY: Operation = Operation {
    endpoint: Endpoint::Ready,
    id: "ready",
    summary: "Whether this node serves",
    description: "It has formed or joined its cluster and hears a leader for each of its shards: for those who send \
                  requests only where they are served.",
    answers: HEALTH_ANSWERS,
    ..LIVE
};

const NODE_HEALTH: Operation = Operation {
    endpoint: Endpoint::NodeHealth,
    id: "healthcheck",
    summary: "Whether this node is well",
    description: "As readyz, with its state.",
    ..READY
};

const HEALTHZ: Operation = Operation {
    endpoint: Endpoint::ClusterHealth,
    id: "healthz",
    summary: "Whether every member is well",
    description: "Asked of each, within 2 s; one that does not answer is shown as unreachable.",
    parameters: &[],
    ..READY
};

const CLUSTER_HEALTH: Operation = Operation { id: "clusterHealthcheck", ..HEALTHZ };

/// A request's operation, and the key's text in its path where there is one.
#[derive(Debug)]
pub(crate) struct Matched<'a> {
    pub(crate) operation: &'static Operation,
    pub(crate) key_text: &'a str,
}

/// Finds the operation for a path and a method.
pub(crate) fn find<'a>(path: &'a str, method: &str) -> Result<Matched<'a>, Refusal> {
    let mut matches = ROUTES.iter().filter_map(|route| match route.path.strip_suffix("{key}") {
        Some(front) => path.strip_prefix(front).map(|key_text| (route, key_text)),
        None => (path == route.path).then_some((route, "")),
    });
    let Some((route, key_text)) = matches.next() else {
        let status = krita_net::http::StatusCode::NOT_FOUND;
        return Err(Refusal::with_status(status, "there is no such path; /v1/openapi.json has all of them"));
    };
    let of_method = |wanted: &str| route.operations.iter().find(|operation| operation.method == wanted);
    // The server sends the head alone.
    let operation = of_method(method).or_else(|| of_method("GET").filter(|_| method == "HEAD"));
    operation.map(|operation| Matched { operation, key_text }).ok_or_else(|| Refusal::method(route.allow))
}

/// The first operation with an endpoint.
#[cfg(test)]
pub(crate) fn operation_of(endpoint: Endpoint) -> &'static Operation {
    let mut operations = ROUTES.iter().flat_map(|route| route.operations);
    operations.find(|operation| operation.endpoint == endpoint).expect("every endpoint has a route")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods_find_their_operation() {
        let found = |path, method| find(path, method).map(|matched| (matched.operation.id, matched.key_text));
        assert_eq!(found("/v1/kv/a%2Fb/c", "PUT").unwrap(), ("putKey", "a%2Fb/c"));
        assert_eq!(found("/v1/kv/", "GET").unwrap(), ("getKey", ""));
        assert_eq!(found("/v1/kv/k", "HEAD").unwrap(), ("headKey", "k"));
        assert_eq!(found("/v1/scan", "HEAD").unwrap(), ("scan", ""));
        for (path, method, status, allow) in [
            ("/", "GET", 404, None),
            ("/v1/kv", "GET", 404, None),
            ("/v1/scan/", "GET", 404, None),
            ("/V1/scan", "GET", 404, None),
            ("/v1/scan", "POST", 405, Some("GET, HEAD")),
            ("/v1/kv/k", "PATCH", 405, Some("GET, HEAD, PUT, DELETE")),
            ("/v1/batch", "get", 405, Some("POST")),
        ] {
            let response = find(path, method).unwrap_err().response();
            assert_eq!(response.status().as_u16(), status, "{method} {path}");
            let header = response.headers().get("allow").map(|value| value.to_str().unwrap());
            assert_eq!(header, allow, "{method} {path}");
        }
    }

    #[test]
    fn allow_names_the_methods_of_the_table() {
        for route in ROUTES {
            let mut methods: Vec<&str> = route.operations.iter().map(|operation| operation.method).collect();
            if methods.contains(&"GET") && !methods.contains(&"HEAD") {
                methods.insert(1, "HEAD");
            }
            assert_eq!(route.allow, methods.join(", "), "{}", route.path);
        }
    }
}
