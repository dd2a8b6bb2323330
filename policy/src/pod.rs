//! Pods, as far as somebody who snapshots them has to know them. What else a pod's spec says is nobody's business here, and kept as it is.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Metadata, field::Field, metadata::resource_name};

/// A pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Its name and labels.
    pub metadata: Metadata,
    /// The file that says so.
    pub file: PathBuf,
    /// What runs in it.
    pub containers: Vec<Container>,
    /// The account it runs as; `default` unless it says another.
    pub service_account: String,
    /// All of its spec.
    pub spec: Value,
}

/// A program in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// The image it runs from.
    pub image: String,
    /// The program, its arguments included.
    pub command: Vec<String>,
    /// Its environment; variables that come from elsewhere are not among them.
    pub env: BTreeMap<String, String>,
}

impl Pod {
    pub(crate) fn read(metadata: Metadata, spec: &Field<'_>) -> Result<Self, Error> {
        let mut fields = spec.map()?;
        let list = fields.require("containers")?;
        let mut containers = Vec::new();
        for container in list.list()? {
            containers.push(Container::read(&container)?);
        }
        if containers.is_empty() {
            return Err(list.error("a pod has at least one"));
        }
        let account = fields.take("serviceAccountName");
        let account = account.map(|account| resource_name(&account)).transpose()?;
        Ok(Self {
            metadata,
            file: spec.file().to_owned(),
            containers,
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            spec: spec.value().to_json(),
        })
    }

    /// The part of the spec that a restored pod must share with the one that was saved: all but the values of the environment, which a
    /// restored pod does not see anyhow, and where the pod is to run.
    pub fn distilled_spec(&self) -> Value {
        let mut spec = self.spec.clone();
        if let Some(fields) = spec.as_object_mut() {
            for field in [
                "nodeName",
                "nodeSelector",
                "affinity",
                "tolerations",
                "schedulerName",
                "schedulingGates",
                "topologySpreadConstraints",
                "priority",
                "priorityClassName",
                "terminationGracePeriodSeconds",
            ] {
                fields.remove(field);
            }
        }
        for list in ["containers", "initContainers"] {
            let containers = spec.get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    distil_environment(container);
                }
            }
        }
        spec
    }

    /// The snapshot that the pod asks for, if it asks for a certain one.
    pub fn pinned_snapshot(&self) -> Option<&str> {
        let pinned = self.metadata.annotations.get(crate::PINNED_SNAPSHOT);
        pinned.map(String::as_str)
    }
}

/// Leaves the names of variables. An empty environment is none.
fn distil_environment(container: &mut Map<String, Value>) {
    let Some(env) = container.get_mut("env") else {
        return;
    };
    let variables = env.as_array_mut();
    for variable in variables.into_iter().flatten() {
        if let Some(variable) = variable.as_object_mut() {
            variable.retain(|key, _| key == "name");
        }
    }
    if env.is_null() || env.as_array().is_some_and(Vec::is_empty) {
        container.remove("env");
    }
}

impl Container {
    fn read(field: &Field<'_>) -> Result<Self, Error> {
        let mut fields = field.map()?;
        let name = fields.require("name")?.name()?.to_owned();
        let image = fields.require("image")?.name()?.to_owned();
        let mut command = Vec::new();
        for part in ["command", "args"] {
            if let Some(list) = fields.take(part) {
                for word in list.list()? {
                    command.push(word.text()?.to_owned());
                }
            }
        }
        let mut env = BTreeMap::new();
        if let Some(list) = fields.take("env") {
            for variable in list.list()? {
                let mut variable = variable.map()?;
                let name = variable.require("name")?.name()?.to_owned();
                if let Some(value) = variable.take("value") {
                    env.insert(name, value.text()?.to_owned());
                }
            }
        }
        Ok(Self {
            name,
            image,
            command,
            env,
        })
    }
}
