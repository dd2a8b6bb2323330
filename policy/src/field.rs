//! Walking through a document: a field knows its path and its line, so that whatever is wrong with it can be said.

use std::path::Path;

use crate::{
    Error,
    error::quoted,
    yaml::{Node, Value},
};

/// A value, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Field<'a> {
    file: &'a Path,
    path: String,
    node: &'a Node,
}

/// A map whose fields are taken one by one; what is left at the end is unknown.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    of: Field<'a>,
    left: Vec<(&'a str, &'a Node)>,
    known: Vec<&'static str>,
}

impl<'a> Field<'a> {
    pub(crate) fn root(file: &'a Path, node: &'a Node) -> Self {
        Self {
            file,
            path: String::new(),
            node,
        }
    }

    pub(crate) fn file(&self) -> &'a Path {
        self.file
    }

    pub(crate) fn line(&self) -> u64 {
        self.node.line
    }

    pub(crate) fn value(&self) -> &'a Value {
        &self.node.value
    }

    pub(crate) fn error(&self, problem: impl Into<String>) -> Error {
        Error::new(self.file, self.node.line, self.path.clone(), problem)
    }

    fn expected(&self, what: &str) -> Error {
        self.error(format!("{what} is expected, not {}", self.value().kind()))
    }

    fn child(&self, key: &str, node: &'a Node) -> Self {
        let path = match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        };
        Self {
            file: self.file,
            path,
            node,
        }
    }

    pub(crate) fn map(&self) -> Result<Fields<'a>, Error> {
        let Value::Map(map) = self.value() else {
            return Err(self.expected("a map"));
        };
        Ok(Fields {
            of: self.clone(),
            left: map.iter().map(|(key, node)| (key.as_str(), node)).collect(),
            known: Vec::new(),
        })
    }

    pub(crate) fn list(&self) -> Result<Vec<Field<'a>>, Error> {
        let Value::List(list) = self.value() else {
            return Err(self.expected("a list"));
        };
        let items = list.iter().enumerate();
        Ok(items
            .map(|(i, node)| Field {
                file: self.file,
                path: format!("{}[{i}]", self.path),
                node,
            })
            .collect())
    }

    pub(crate) fn text(&self) -> Result<&'a str, Error> {
        match self.value() {
            Value::Text(text) => Ok(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => Err(self.error(format!(
                "a text is expected, not {}: put it into quotes",
                self.value().kind()
            ))),
            _ => Err(self.expected("a text")),
        }
    }

    /// A text that is not empty.
    pub(crate) fn name(&self) -> Result<&'a str, Error> {
        let text = self.text()?;
        match text.is_empty() {
            true => Err(self.error("it is empty")),
            false => Ok(text),
        }
    }

    pub(crate) fn count(&self) -> Result<u32, Error> {
        match self.value() {
            Value::Integer(number) => u32::try_from(*number)
                .map_err(|_| self.error(format!("{number} is no count: 0 or more is expected"))),
            _ => Err(self.expected("a number")),
        }
    }

    /// One of some words.
    pub(crate) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Error> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.error(format!(
                "{} is not one of {}",
                quoted(text),
                words.join(", ")
            ))
        })
    }

    /// A map of texts to texts.
    pub(crate) fn texts(&self) -> Result<Vec<(&'a str, Field<'a>)>, Error> {
        let fields = self.map()?;
        let children = fields.left.iter();
        let children: Vec<_> = children
            .map(|(key, node)| (*key, self.child(key, node)))
            .collect();
        for (_, child) in &children {
            child.text()?;
        }
        Ok(children)
    }
}

impl<'a> Fields<'a> {
    /// A field that may be missing. One that is there and says nothing counts as missing.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        let at = self.left.iter().position(|(name, _)| *name == key)?;
        let (_, node) = self.left.remove(at);
        (node.value != Value::Null).then(|| self.of.child(key, node))
    }

    /// A field that must be there.
    pub(crate) fn require(&mut self, key: &'static str) -> Result<Field<'a>, Error> {
        let taken = self.take(key);
        taken.ok_or_else(|| {
            let missing = self.of.child(key, self.of.node);
            missing.error("it is missing")
        })
    }

    /// Fields that others write and that mean nothing here.
    pub(crate) fn pass_over(&mut self, keys: &[&str]) {
        self.left.retain(|(key, _)| !keys.contains(key));
    }

    /// Whatever was not taken is an error.
    pub(crate) fn end(self) -> Result<(), Error> {
        let Some((key, node)) = self.left.first() else {
            return Ok(());
        };
        let known = self.known.join(", ");
        Err(self
            .of
            .child(key, node)
            .error(format!("there is no such field; there are {known}")))
    }
}
