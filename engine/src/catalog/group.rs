//! Groups: snapshots of which any can stand in for any other. What must agree for that goes into the group's name, as a hash, so the
//! newest that fits is found by one read of the group's head.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use podsnap_format::id::MAX_SNAPSHOT_ID_LEN;
use serde_json::Value;

use crate::metadata::Metadata;

/// Hexadecimal digits of the hash in a group's name.
const HASH_LEN: usize = 32;

/// Bytes of the policy's name in a group's name; the hash covers all of it.
const POLICY_LEN: usize = MAX_SNAPSHOT_ID_LEN - HASH_LEN - 1;

/// Labels that say what a snapshot needs begin so.
const PREFIX: &str = "restore.";

/// What must agree between the pod that was saved and the one that is restored, and between their nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirements {
    /// Hash of the pod's spec.
    pub pod_spec: String,
    /// Version of runsc.
    pub runsc: String,
    /// `x86_64`, `aarch64`, ...
    pub architecture: String,
    /// What the processor can do, in alphabetical order.
    pub cpu_features: String,
    /// Version of the GPU's driver; empty without one.
    pub gpu_driver: String,
    /// Labels of the pod by which a policy tells groups apart.
    pub grouping: BTreeMap<String, String>,
}

impl Requirements {
    /// What a pod of this spec needs if it is saved on this node. The spec is what [is hashed](Requirements::pod_spec): leave out of it what may
    /// differ.
    pub fn of_this_node(pod_spec: &Value, runsc: &str) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            pod_spec: hash_of(pod_spec),
            runsc: runsc.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            cpu_features: cpu_features(&read("/proc/cpuinfo")),
            gpu_driver: gpu_driver(&read("/proc/driver/nvidia/version")),
            grouping: BTreeMap::new(),
        }
    }

    /// The group of such pods under a policy.
    pub fn group(&self, namespace: &str, policy: &str) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("podsnap group v1");
        let fields = [namespace, policy].map(str::to_owned);
        let own = self.fields().into_iter().flat_map(|(k, v)| [k, v]);
        for field in fields.into_iter().chain(own) {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        }
        let hash = hasher.finalize().to_hex();
        let name: String = policy.chars().take_while(char::is_ascii).collect();
        format!(
            "{}.{}",
            &name[..name.len().min(POLICY_LEN)],
            &hash[..HASH_LEN]
        )
    }

    /// The same as labels of a snapshot, so that it can be told later [what differs](Requirements::differences).
    pub fn labels(&self) -> BTreeMap<String, String> {
        let fields = self.fields().into_iter();
        fields.map(|(k, v)| (format!("{PREFIX}{k}"), v)).collect()
    }

    /// What does not agree with a snapshot that was saved with such labels; nothing if it can be restored.
    pub fn differences(&self, snapshot: &Metadata) -> Vec<String> {
        let fields = self.fields().into_iter();
        let differ = fields.filter_map(|(name, here)| {
            let saved = snapshot.labels.get(&format!("{PREFIX}{name}"));
            match saved {
                Some(saved) if *saved == here => None,
                Some(saved) if name == "cpu-features" => Some(features_differ(saved, &here)),
                Some(saved) if name == "pod-spec" && !saved.is_empty() => {
                    Some("its pod had another spec".to_owned())
                }
                Some(saved) => Some(format!("its {name} is {saved:?}, here it is {here:?}")),
                None => Some(format!("it does not say its {name}")),
            }
        });
        differ.collect()
    }

    fn fields(&self) -> Vec<(String, String)> {
        let own = [
            ("pod-spec", &self.pod_spec),
            ("runsc", &self.runsc),
            ("architecture", &self.architecture),
            ("cpu-features", &self.cpu_features),
            ("gpu-driver", &self.gpu_driver),
        ];
        let own = own.map(|(k, v)| (k.to_owned(), v.clone())).into_iter();
        let grouping = self.grouping.iter();
        own.chain(grouping.map(|(k, v)| (format!("label.{k}"), v.clone())))
            .collect()
    }
}

fn features_differ(saved: &str, here: &str) -> String {
    let set =
        |text: &str| -> BTreeSet<String> { text.split_whitespace().map(str::to_owned).collect() };
    let (saved, here) = (set(saved), set(here));
    let list = |a: &BTreeSet<String>, b: &BTreeSet<String>| {
        let only: Vec<_> = a.difference(b).take(8).cloned().collect();
        match only.is_empty() {
            true => "none".to_owned(),
            false => only.join(" "),
        }
    };
    format!(
        "its processor's features are others: only there {}, only here {}",
        list(&saved, &here),
        list(&here, &saved)
    )
}

/// The features of the first processor, each once.
fn cpu_features(cpuinfo: &str) -> String {
    let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut of_first = lines.filter(|(key, _)| matches!(key.trim(), "flags" | "Features"));
    let (_, features) = of_first.next().unwrap_or_default();
    let features: BTreeSet<&str> = features.split_whitespace().collect();
    features.into_iter().collect::<Vec<_>>().join(" ")
}

/// The driver's version, from the line that begins with `NVRM version:`.
fn gpu_driver(version: &str) -> String {
    let line = version
        .lines()
        .find(|line| line.starts_with("NVRM version:"));
    let words = line.unwrap_or_default().split_whitespace();
    let mut numbers = words.filter(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    numbers.next().unwrap_or_default().to_owned()
}

/// Hash of JSON, whatever the order of its fields.
fn hash_of(value: &Value) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("podsnap pod spec v1");
    feed(&mut hasher, value);
    hasher.finalize().to_hex()[..HASH_LEN].to_owned()
}

fn feed(hasher: &mut blake3::Hasher, value: &Value) {
    match value {
        Value::Array(items) => {
            hasher.update(format!("a{};", items.len()).as_bytes());
            for item in items {
                feed(hasher, item);
            }
        }
        Value::Object(fields) => {
            hasher.update(format!("o{};", fields.len()).as_bytes());
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            for (key, value) in sorted {
                feed(hasher, &Value::String(key.clone()));
                feed(hasher, value);
            }
        }
        Value::String(text) => {
            hasher.update(format!("s{};", text.len()).as_bytes());
            hasher.update(text.as_bytes());
        }
        plain => {
            hasher.update(format!("p{plain};").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        let cpuinfo =
            "processor\t: 0\nflags\t\t: sse fpu sse avx\n\nprocessor\t: 1\nflags\t\t: fpu\n";
        assert_eq!(cpu_features(cpuinfo), "avx fpu sse");
        assert_eq!(cpu_features("Features\t: asimd fp"), "asimd fp");
        assert_eq!(cpu_features(""), "");
        let nvidia = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.126.20  Release Build\nGCC version: gcc 13\n";
        assert_eq!(gpu_driver(nvidia), "580.126.20");
        assert_eq!(gpu_driver("nothing"), "");
    }
}
