//! What must be equal on both hosts, key by key, so that a difference can be named.

use serde_json::Value;

use super::Config;

/// Most elements of an array that are told one by one; of a longer one, all together.
const ELEMENTS_MAX: usize = 64;

/// Each key of what both hosts must have in common, as `protection.mode` or `disk.blk0.queues`, with a
/// checksum of its value.
pub(super) fn of(config: &Config) -> Vec<(String, u32)> {
    let value = |part: serde_json::Result<Value>| part.unwrap_or(Value::Null);
    let mut keys = Vec::new();
    walk("vm", &Value::from(config.vm.as_str()), &mut keys);
    walk(
        "machine",
        &value(serde_json::to_value(&config.machine)),
        &mut keys,
    );
    walk("disk", &value(serde_json::to_value(&config.disks)), &mut keys);
    walk("net", &value(serde_json::to_value(&config.nets)), &mut keys);
    walk(
        "protection",
        &value(serde_json::to_value(&config.protection)),
        &mut keys,
    );
    walk(
        "arbiter",
        &value(serde_json::to_value(&config.arbiter)),
        &mut keys,
    );
    let hosts: Vec<&String> = config.hosts.keys().collect();
    keys.push((
        "the names in [hosts]".into(),
        checksum(&value(serde_json::to_value(hosts))),
    ));
    keys
}

fn walk(path: &str, value: &Value, keys: &mut Vec<(String, u32)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                walk(&format!("{path}.{name}"), field, keys);
            }
        }
        Value::Array(elements) if elements.iter().all(Value::is_object) && elements.len() <= ELEMENTS_MAX => {
            for (index, element) in elements.iter().enumerate() {
                let id = element.get("id").and_then(Value::as_str);
                let name = id.map_or_else(|| index.to_string(), str::to_owned);
                walk(&format!("{path}.{name}"), element, keys);
            }
        }
        _ => keys.push((path.to_owned(), checksum(value))),
    }
}

fn checksum(value: &Value) -> u32 {
    crc32fast::hash(value.to_string().as_bytes())
}
