//! The bundle of a pod: its program on the node's own root file system, read-only, with memory over it.

use std::{fs, path::Path};

use podsnap::policy::Pod;
use serde_json::{Value, json};

/// Writes `config.json`. `annotations` are for runsc.
pub fn write(dir: &Path, pod: &Pod, annotations: &Value) -> Result<(), String> {
    let [container] = &pod.containers[..] else {
        return Err("this agent runs pods of one container only".to_owned());
    };
    if container.command.is_empty() {
        return Err(format!(
            "the container {} names no command, and this agent looks into no images",
            container.name
        ));
    }
    let mut env = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    env.extend(container.env.iter().map(|(k, v)| format!("{k}={v}")));
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    let config = json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": container.command,
            "env": env,
            "cwd": "/",
        },
        "root": { "path": "/", "readonly": true },
        "hostname": pod.metadata.name,
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"] },
        ],
        "annotations": annotations,
        "linux": { "namespaces": namespaces },
    });
    let path = dir.join("config.json");
    fs::write(&path, config.to_string()).map_err(|e| format!("{}: {e}", path.display()))
}
