//! `/_control/...`: the library's handle for other processes, in JSON.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::{config::Config, faults::Fault, inspect, reply::Reply, request::Query, server::Shared};

const BODY_LEN: usize = 4 << 20;

/// Answers a request of a test's other process.
pub(crate) async fn handle(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    query: &Query,
    body: Incoming,
) -> Reply {
    let body = match Limited::new(body, BODY_LEN).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) => return failed(format!("reading the body: {e}")),
    };
    answer(shared, method, path, query, &body).unwrap_or_else(failed)
}

fn failed(why: String) -> Reply {
    let mut reply = Reply::json(&json!({"error": why}));
    reply.status = StatusCode::BAD_REQUEST;
    reply
}

fn answer(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    query: &Query,
    body: &[u8],
) -> Result<Reply, String> {
    let parse = || serde_json::from_slice::<Value>(body).map_err(|e| format!("the body: {e}"));
    let done = json!({"done": true});
    let value = match (method.as_str(), path.trim_start_matches("/_control/")) {
        ("GET", "config") => json!(*shared.config()),
        ("PUT" | "PATCH", "config") => {
            let mut config = match *method {
                Method::PUT => json!(Config::default()),
                _ => json!(*shared.config()),
            };
            merge(&mut config, parse()?);
            let config =
                serde_json::from_value(config).map_err(|e| format!("the configuration: {e}"))?;
            shared.set_config(config);
            done
        }
        ("GET", "faults") => {
            let listed = shared.faults.list();
            let listed = listed
                .iter()
                .map(|(fault, n)| json!({"fault": fault, "happened": n}));
            listed.collect()
        }
        ("POST", "faults") => {
            let faults: Vec<Fault> = match parse()? {
                list @ Value::Array(_) => serde_json::from_value(list),
                one => serde_json::from_value(one).map(|fault| vec![fault]),
            }
            .map_err(|e| format!("the fault: {e}"))?;
            for fault in faults {
                shared.faults.add(fault);
            }
            done
        }
        ("DELETE", "faults") => {
            shared.faults.clear();
            done
        }
        ("GET", "log") => json!(shared.recorder.log().entries),
        ("GET", "counts") => json!(shared.recorder.log().counts()),
        ("DELETE", "log") => {
            shared.recorder.clear();
            done
        }
        ("GET", "objects") => json!(inspect::objects(shared, bucket(query)?)),
        ("GET", "billing") => json!(inspect::billing(shared, bucket(query)?)),
        ("GET", "connections") => json!(inspect::connections(shared)),
        ("POST", "tokens") => {
            let asked = parse()?;
            let principal = asked["principal"].as_str().ok_or("principal is missing")?;
            let life_ms = asked["life_ms"].as_u64().unwrap_or(3_600_000);
            json!({"token": shared.tokens.issue(principal, Duration::from_millis(life_ms))})
        }
        ("DELETE", "tokens") => {
            shared.tokens.revoke_all();
            done
        }
        (method, what) => return Err(format!("there is no {method} {what}")),
    };
    Ok(Reply::json(&value))
}

fn bucket(query: &Query) -> Result<&str, String> {
    query
        .get("bucket")
        .ok_or_else(|| "bucket is missing".into())
}

/// JSON merge patch.
fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                match value {
                    Value::Null => {
                        into.remove(&key);
                    }
                    value => merge(into.entry(key).or_insert(Value::Null), value),
                }
            }
        }
        (into, patch) => *into = patch,
    }
}
