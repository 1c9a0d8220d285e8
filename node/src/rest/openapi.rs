//! The table of routes as an OpenAPI 3.1 document. The shapes of bodies are stated here, and held to what the node
//! really sends by the tests that run a checker against a cluster.

use krita_net::http::{OutgoingBody, Response, StatusCode};
use krita_proto::routing::BATCH_OPERATIONS_MAX;
use serde_json::{Map, Value, json};

use super::answer;
use super::routes::{Access, Answer, Kind, Location, Operation, Parameter, ROUTES};

/// `GET /v1/openapi.json`.
pub(crate) fn answer() -> Response<OutgoingBody> {
    answer::json(StatusCode::OK, &document())
}

/// The whole document.
pub(crate) fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let mut item = Map::new();
        for operation in route.operations {
            item.insert(operation.method.to_ascii_lowercase(), operation_object(operation));
        }
        paths.insert(route.path.to_owned(), Value::Object(item));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Krita",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A replicated key-value store: what it offers over HTTP.",
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(),
        },
    })
}

fn operation_object(operation: &Operation) -> Value {
    let mut object = Map::new();
    object.insert("operationId".to_owned(), json!(operation.id));
    object.insert("summary".to_owned(), json!(operation.summary));
    object.insert("description".to_owned(), json!(operation.description));
    let security = match operation.access {
        Access::Token => json!([{ "token": [] }]),
        Access::Open => json!([{}, { "token": [] }]),
    };
    object.insert("security".to_owned(), security);
    if !operation.parameters.is_empty() {
        let parameters: Vec<Value> = operation.parameters.iter().map(parameter_object).collect();
        object.insert("parameters".to_owned(), json!(parameters));
    }
    if !operation.body.is_empty() {
        object.insert(
            "requestBody".to_owned(),
            json!({ "required": true, "content": content(operation.body) }),
        );
    }
    let mut responses = Map::new();
    for answer in operation.answers {
        responses.insert(answer.status.to_string(), answer_object(answer));
    }
    for status in operation.errors {
        let is_head = operation.method == "HEAD";
        responses.entry(status.to_string()).or_insert_with(|| error_object(*status, is_head));
    }
    object.insert("responses".to_owned(), Value::Object(responses));
    Value::Object(object)
}

fn parameter_object(parameter: &Parameter) -> Value {
    let location = match parameter.location {
        Location::Path => "path",
        Location::Query => "query",
        Location::Header => "header",
    };
    let schema = match parameter.kind {
        Kind::Text { least, most } => json!({ "type": "string", "minLength": least, "maxLength": most }),
        Kind::Pattern(pattern, least) => json!({ "type": "string", "pattern": pattern, "minLength": least }),
        Kind::Number { least, most } => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Kind::Switch => json!({ "type": "boolean" }),
        Kind::Flag => json!({ "type": "string", "enum": ["", "true", "false"] }),
        Kind::OneOf(words) => json!({ "type": "string", "enum": words }),
    };
    json!({
        "name": parameter.name,
        "in": location,
        "required": parameter.location == Location::Path,
        "description": parameter.description,
        "schema": schema,
    })
}

fn content(forms: &[(&str, &str)]) -> Value {
    let forms = forms.iter().map(|(media_type, schema)| {
        let schema = match *schema {
            // OpenAPI 3.1: bytes have no schema.
            "Bytes" => json!({}),
            name => json!({ "schema": { "$ref": format!("#/components/schemas/{name}") } }),
        };
        ((*media_type).to_owned(), schema)
    });
    Value::Object(forms.collect())
}

fn answer_object(answer: &Answer) -> Value {
    let mut object = Map::from_iter([("description".to_owned(), json!(answer.description))]);
    if !answer.forms.is_empty() {
        object.insert("content".to_owned(), content(answer.forms));
    }
    if answer.has_etag {
        let etag = json!({
            "description": "The key's version, in quotes.",
            "schema": { "type": "string", "pattern": "^\"[1-9][0-9]*\"$" },
        });
        object.insert("headers".to_owned(), json!({ "ETag": etag }));
    }
    Value::Object(object)
}

fn error_object(status: u16, is_head: bool) -> Value {
    let description = match status {
        400 => "The request is malformed or breaks a limit.",
        401 => "The token is missing or unknown.",
        403 => "The token does not allow this.",
        404 => "The key is absent.",
        406 => "The answer does not come in the form that Accept asks for.",
        408 => "The body did not come in time.",
        412 => "The condition does not hold: current_version is what the key has. Nothing was applied.",
        413 => "The body is too large.",
        415 => "The body is of another type.",
        421 => "This is another cluster.",
        429 => "The node has too much to do: come back after Retry-After. Nothing was applied.",
        431 => "The target and the headers are too large; the answer has no body.",
        503 => "No quorum, no leader, or the node does not serve yet. Nothing was applied.",
        504 => "The time was over before anything was done. Nothing was applied.",
        507 => "Out of room: disk or sessions. Nothing was applied.",
        520 => "The write may or may not have been, or be, applied.",
        _ => "A fault of the node.",
    };
    let mut object = Map::from_iter([("description".to_owned(), json!(description))]);
    // HTTP itself answers 431, before anything knows of REST.
    if !is_head && status != 431 {
        object.insert("content".to_owned(), content(&[("application/json", "Error")]));
    }
    Value::Object(object)
}

fn schemas() -> Value {
    let mut schemas = data_schemas();
    schemas.extend(batch_schemas());
    schemas.extend(cluster_schemas());
    Value::Object(schemas)
}

fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => unreachable!("every list of schemas is an object"),
    }
}

/// An object with all of these members, and no others.
fn object(properties: Value) -> Value {
    let required: Vec<&str> =
        properties.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    json!({ "type": "object", "required": required, "additionalProperties": false, "properties": properties })
}

fn base64() -> Value {
    json!({ "type": "string", "contentEncoding": "base64", "pattern": BASE64_PATTERN })
}

/// Whole groups of four, the last perhaps padded.
const BASE64_PATTERN: &str = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$";

/// A whole number from `least` up.
fn whole(least: u32, description: &str) -> Value {
    json!({ "type": "integer", "minimum": least, "description": description })
}

fn version() -> Value {
    whole(0, "The log index of the key's last change in its shard; 0 = absent.")
}

fn data_schemas() -> Map<String, Value> {
    let text = json!({ "type": ["string", "null"], "description": "null if it is not UTF-8, or longer than 1 MiB." });
    let item = json!({
        "type": "object",
        "required": ["key", "key_base64", "version"],
        "additionalProperties": false,
        "properties": {
            "key": text, "key_base64": base64(), "value": text, "value_base64": base64(), "version": version(),
        },
    });
    members(json!({
        "Anything": { "type": "object" },
        "Error": object(json!({ "error": { "$ref": "#/components/schemas/ErrorDetail" } })),
        "ErrorDetail": {
            "type": "object",
            "required": ["code", "name", "message", "action"],
            "additionalProperties": false,
            "properties": {
                "code": whole(0, "Stable number; 0 = no error, the key is absent."),
                "name": { "type": "string", "description": "Stable name." },
                "message": { "type": "string", "description": "What happened, for people." },
                "action": { "type": "string", "description": "What to do about it." },
                "retry_after_ms": { "type": "integer", "minimum": 1 },
                "current_version": whole(0, "CONDITION_FAILED: the version that the key has; 0 = absent."),
                "operation": whole(0, "CONDITION_FAILED: which operation, from 0."),
                "leader_node": { "type": "integer", "minimum": 1 },
                "log_time_ms": whole(1, "UNKNOWN_OUTCOME: this attempt was not applied; an earlier one may have been."),
            },
        },
        "Item": item,
        "Written": object(json!({ "version": version() })),
        "Deleted": object(json!({ "existed": { "type": "boolean" }, "version": version() })),
        "Page": object(json!({
            "items": { "type": "array", "items": { "$ref": "#/components/schemas/Item" } },
            "cursor": {
                "type": ["string", "null"],
                "description": "Where the next page begins; null at the end of the range.",
            },
            "versions": { "type": "array", "items": { "$ref": "#/components/schemas/ShardVersion" } },
        })),
        "ShardVersion": object(json!({
            "shard": whole(1, "Items of this shard, here and in the pages behind,"),
            "applied_index": whole(0, "are as of this entry of its log,"),
            "newer": { "type": "boolean", "description": "and those of earlier pages perhaps as of an earlier one." },
            "stale": { "type": "boolean", "description": "No quorum confirmed it." },
        })),
        "PutBody": one_of_each(&[&["value", "value_base64"]], true),
    }))
}

/// An object with exactly one of each of these pairs (text or base64), and, if wanted, with a condition.
fn one_of_each(pairs: &[&[&str; 2]], has_condition: bool) -> Value {
    let mut properties = Map::new();
    let choices = pairs.iter().map(
        |[text, base64_name]| json!({ "oneOf": [{ "required": [text] }, { "required": [base64_name] }] }),
    );
    let mut all: Vec<Value> = choices.collect();
    for [text, base64_name] in pairs {
        let text_schema = match *text {
            "key" => json!({ "type": "string", "minLength": 1, "maxLength": 1024 }),
            _ => json!({ "type": "string" }),
        };
        let base64_schema = match *text {
            "key" => json!({
                "type": "string",
                "contentEncoding": "base64",
                "pattern": BASE64_PATTERN,
                "minLength": 4,
                "maxLength": 5464,
            }),
            _ => base64(),
        };
        properties.insert((*text).to_owned(), text_schema);
        properties.insert((*base64_name).to_owned(), base64_schema);
    }
    if has_condition {
        properties
            .insert("if_version".to_owned(), json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }));
        properties.insert("if_value".to_owned(), json!({ "type": "string" }));
        properties.insert("if_value_base64".to_owned(), base64());
        let one_at_most =
            [["if_version", "if_value"], ["if_version", "if_value_base64"], ["if_value", "if_value_base64"]];
        all.extend(one_at_most.iter().map(|pair| json!({ "not": { "required": pair } })));
    }
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "allOf": all })
}

fn batch_schemas() -> Map<String, Value> {
    let key: &[&str; 2] = &["key", "key_base64"];
    let value: &[&str; 2] = &["value", "value_base64"];
    let text = json!({ "type": ["string", "null"] });
    let shard = json!({ "type": "integer", "minimum": 1 });
    members(json!({
        "BatchBody": object(json!({
            "operations": {
                "type": "array",
                "minItems": 1,
                "maxItems": BATCH_OPERATIONS_MAX,
                "items": { "$ref": "#/components/schemas/Operation" },
            },
        })),
        "Operation": {
            "description": "Exactly one of the three. No key comes twice in a batch.",
            "oneOf": [
                object(json!({ "put": one_of_each(&[key, value], true) })),
                object(json!({ "delete": one_of_each(&[key], true) })),
                object(json!({ "get": one_of_each(&[key], false) })),
            ],
        },
        "BatchResults": object(json!({
            "complete": { "type": "boolean", "description": "Everything was done." },
            "results": {
                "type": "array",
                "description": "One for each operation, in order.",
                "items": { "$ref": "#/components/schemas/Result" },
            },
        })),
        "Result": {
            "anyOf": [
                object(json!({ "shard": shard, "version": version() })),
                object(json!({ "shard": shard, "existed": { "type": "boolean" } })),
                object(json!({ "shard": shard, "found": { "const": false }, "version": version() })),
                object(json!({
                    "shard": shard,
                    "found": { "const": true },
                    "version": version(),
                    "value": text,
                    "value_base64": base64(),
                })),
                object(json!({ "shard": shard, "error": { "$ref": "#/components/schemas/ErrorDetail" } })),
            ],
        },
    }))
}

fn cluster_schemas() -> Map<String, Value> {
    let number = json!({ "type": "integer", "minimum": 0 });
    let number_or_null = json!({ "type": ["integer", "null"], "minimum": 0 });
    let text = json!({ "type": "string" });
    members(json!({
        "Cluster": object(json!({
            "cluster_name": text,
            "cluster_id": { "type": "string", "pattern": "^[0-9a-f]*$" },
            "epoch": number,
            "log_time_ms": number,
            "shards": number,
            "members": {
                "type": "array",
                "items": object(json!({ "node_number": number, "node_id": text, "address": text })),
            },
        })),
        "Shards": object(json!({
            "epoch": number,
            "shards": {
                "type": "array",
                "items": object(json!({
                    "shard": number,
                    "nodes": { "type": "array", "items": number },
                    "leader_node": number_or_null,
                    "leader_core": number_or_null,
                })),
            },
        })),
        "Nodes": object(json!({ "nodes": { "type": "array", "items": { "$ref": "#/components/schemas/Member" } } })),
        "Member": {
            "type": "object",
            "required": ["node_id", "reachable", "state"],
            "properties": {
                "node_number": number, "node_id": text, "address": text,
                "reachable": { "type": "boolean" },
                "state": text,
                "problems": { "type": "array", "items": text },
                "version": text, "uptime_ms": number, "cores": number,
                "shards_total": number, "shards_led": number, "shards_with_leader": number,
                "storage": { "type": ["object", "null"] },
                "gossip": {
                    "type": ["object", "null"],
                    "description": "What gossip has told the node that answers of this one; hints. Without a token, \
                                    its state alone.",
                    "required": ["state", "for_ms"],
                    "properties": {
                        "state": { "enum": ["alive", "suspect", "dead", "left", "unknown"] },
                        "for_ms": number,
                        "incarnation": { "type": "string", "pattern": "^[0-9]+$" },
                        "zone": text, "capacity": number, "version": text, "feature_version": number,
                        "load_per_mille": number, "stored_bytes": number,
                        "health": { "enum": ["well", "impaired", "failing", ""] },
                        "shard_map_epoch": number, "settings_epoch": number, "unreached_ms": number,
                    },
                },
            },
        },
        "Health": {
            "type": "object",
            "required": ["healthy"],
            "properties": {
                "healthy": { "type": "boolean" },
                "node_id": text, "state": text, "version": text, "uptime_ms": number,
                "problems": { "type": "array", "items": text, "description": "Only for those who show a token." },
                "checks": {
                    "type": "array",
                    "items": object(json!({ "name": text, "ok": { "type": "boolean" }, "detail": text })),
                },
                "members": { "type": "array", "items": { "$ref": "#/components/schemas/Member" } },
            },
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference of a document, as pointers into it.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    match (name.as_str(), value) {
                        ("$ref", Value::String(target)) => found.push(target.clone()),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_reference_resolves_and_every_schema_is_used() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        for target in &found {
            let pointer = target.strip_prefix('#').expect("references stay within the document");
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            let target = format!("#/components/schemas/{name}");
            assert!(found.contains(&target), "{name} is used nowhere");
        }
    }

    #[test]
    fn the_document_has_every_route_and_each_id_once() {
        let document = document();
        let mut ids = Vec::new();
        for route in ROUTES {
            for operation in route.operations {
                let object = &document["paths"][route.path][operation.method.to_ascii_lowercase()];
                assert_eq!(object["operationId"], operation.id);
                assert!(!ids.contains(&operation.id), "{} comes twice", operation.id);
                ids.push(operation.id);
            }
        }
    }
}
