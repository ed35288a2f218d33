//! Just enough JSON for cargo's messages and lingerscope's document.

use anyhow::{Context as _, Result, bail};

/// Deeper documents are refused.
const MAX_DEPTH: u32 = 64;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    Array(Vec<Value>),
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Reads one document.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut reader = Reader { rest: text };
        let value = reader.value(0)?;
        reader.skip_space();
        if !reader.rest.is_empty() {
            bail!("JSON goes on after its end: {}", reader.here());
        }
        Ok(value)
    }

    /// A member of an object; null where there is none.
    pub(crate) fn get(&self, key: &str) -> &Value {
        match self {
            Self::Object(members) => members
                .iter()
                .find(|(name, _)| name == key)
                .map_or(&Self::Null, |(_, v)| v),
            _ => &Self::Null,
        }
    }

    /// The items of an array; none for anything else.
    pub(crate) fn items(&self) -> &[Value] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }

    /// The text of a string; empty for anything else.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::String(text) => text,
            _ => "",
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn here(&self) -> String {
        self.rest.chars().take(40).collect()
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }

    /// Takes `token` if it comes next.
    fn take(&mut self, token: &str) -> bool {
        self.skip_space();
        self.rest
            .strip_prefix(token)
            .inspect(|rest| self.rest = rest)
            .is_some()
    }

    fn value(&mut self, depth: u32) -> Result<Value> {
        if depth > MAX_DEPTH {
            bail!("JSON is nested too deep");
        }
        if self.take("null") {
            Ok(Value::Null)
        } else if self.take("true") {
            Ok(Value::Bool(true))
        } else if self.take("false") {
            Ok(Value::Bool(false))
        } else if self.take("\"") {
            self.string().map(Value::String)
        } else if self.take("[") {
            let mut items = Vec::new();
            while !self.take("]") {
                self.comma(items.is_empty())?;
                items.push(self.value(depth + 1)?);
            }
            Ok(Value::Array(items))
        } else if self.take("{") {
            let mut members = Vec::new();
            while !self.take("}") {
                self.comma(members.is_empty())?;
                if !self.take("\"") {
                    bail!("JSON key expected: {}", self.here());
                }
                let key = self.string()?;
                if !self.take(":") {
                    bail!("JSON colon expected: {}", self.here());
                }
                members.push((key, self.value(depth + 1)?));
            }
            Ok(Value::Object(members))
        } else {
            self.number()
        }
    }

    fn comma(&mut self, first: bool) -> Result<()> {
        if !first && !self.take(",") {
            bail!("JSON comma expected: {}", self.here());
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Value> {
        let end = self
            .rest
            .find(|c: char| !"+-.eE0123456789".contains(c))
            .unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        let number = digits
            .parse()
            .with_context(|| format!("JSON value expected: {}", self.here()))?;
        self.rest = rest;
        Ok(Value::Number(number))
    }

    /// What follows an opening quote.
    fn string(&mut self) -> Result<String> {
        let mut text = String::new();
        let mut characters = self.rest.chars();
        while let Some(c) = characters.next() {
            match c {
                '"' => {
                    self.rest = characters.as_str();
                    return Ok(text);
                }
                '\\' => match characters.next() {
                    Some('u') => {
                        let digits = characters
                            .as_str()
                            .get(..4)
                            .context("JSON escape cut off")?;
                        let code =
                            u32::from_str_radix(digits, 16).context("JSON escape of bad digits")?;
                        // Halves of a pair stay unreadable; nothing here needs them.
                        text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                        characters = characters.as_str().get(4..).unwrap_or_default().chars();
                    }
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some('b') => text.push('\x08'),
                    Some('f') => text.push('\x0c'),
                    Some(other @ ('"' | '\\' | '/')) => text.push(other),
                    _ => bail!("unknown JSON escape"),
                },
                other => text.push(other),
            }
        }
        bail!("JSON string without an end")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_document() {
        let value =
            Value::parse(r#" {"a": [1, -2.5e1, "x\"\n\u00e9", {}], "b": null, "c": true} "#)
                .unwrap();
        assert_eq!(value.get("a").items()[1], Value::Number(-25.0));
        assert_eq!(value.get("a").items()[2].text(), "x\"\n\u{e9}");
        assert_eq!(value.get("a").items()[3], Value::Object(vec![]));
        assert_eq!(*value.get("c"), Value::Bool(true));
        assert_eq!(*value.get("b").get("none"), Value::Null);
    }

    #[test]
    fn refuses_what_is_no_document() {
        for bad in [
            "",
            "{",
            "[1 2]",
            "{\"a\" 1}",
            "{a:1}",
            "\"open",
            "1 2",
            "nul",
            r#""\x""#,
            r#""\u12""#,
        ] {
            assert!(Value::parse(bad).is_err(), "{bad}");
        }
        assert!(Value::parse(&"[".repeat(100_000)).is_err());
    }
}
