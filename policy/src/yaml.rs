//! YAML as a tree that remembers its lines. It is bounded: in length, in depth, in what aliases expand to.

use std::{borrow::Cow, fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{MessageFormatter, Spanned, UserMessageFormatter};

use crate::{Error, error::cut};

/// A file that is longer, in bytes, is none of ours.
pub(crate) const MAX_FILE_LEN: usize = 1 << 20;

/// A value and the line it stands in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: u64,
    pub(crate) value: Value,
}

/// What YAML knows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file.
    Map(Vec<(String, Node)>),
}

impl Value {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a truth value",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// The same as JSON.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Self::Null => Json::Null,
            Self::Bool(bool) => (*bool).into(),
            Self::Integer(number) => match i64::try_from(*number) {
                Ok(number) => number.into(),
                Err(_) => number.to_string().into(),
            },
            Self::Float(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
            Self::List(list) => list.iter().map(|node| node.value.to_json()).collect(),
            Self::Map(map) => {
                let fields = map.iter();
                let fields = fields.map(|(key, node)| (key.clone(), node.value.to_json()));
                Json::Object(fields.collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML without tags of its own")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some((key, mut node)) = entries.next_entry::<Spanned<String>, Node>()? {
            // A value that goes over several lines belongs to the line of its name.
            node.line = key.referenced.line();
            map.push((key.value, node));
        }
        Ok(Value::Map(map))
    }
}

/// The documents of a file, empty ones left out. There is at least one: a file without is one that somebody has only begun to write.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Vec<Node>, Error> {
    if text.len() > MAX_FILE_LEN {
        return Err(Error::of_file(file, "it is longer than 1 MiB"));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1000,
            max_nodes: 100_000,
            max_total_scalar_bytes: MAX_FILE_LEN * 4,
        },
        // `yes` and `y` are texts, as in labels.
        strict_booleans: true,
        with_snippet: false,
    };
    let parsed = serde_saphyr::from_multiple_with_options::<Node>(text, options);
    let documents = parsed.map_err(|e| {
        let line = e.location().map_or(0, |location| location.line());
        Error::new(file, line, "", format!("no YAML: {}", cut(&said(&e))))
    })?;
    let is_there = |node: &Node| node.value != Value::Null;
    let documents: Vec<Node> = documents.into_iter().filter(is_there).collect();
    match documents.is_empty() {
        true => Err(Error::of_file(
            file,
            "it holds no document; whoever is writing it should write elsewhere, then rename",
        )),
        false => Ok(documents),
    }
}

/// What the parser says, in words for who wrote the file.
fn said(error: &serde_saphyr::Error) -> Cow<'_, str> {
    use serde_saphyr::Error;
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => said(error),
        Error::Budget { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "it holds too much for one file, nests too deep, or repeats too much by aliases".into()
        }
        error => UserMessageFormatter.format_message(error),
    }
}
