//! Lists in answers, with a bound on their length: a reader that a target has
//! taken over may claim any. A short message can hold a long list of empty
//! things, so the bound is kept while the list is decoded.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

/// Words of ours that travel as text; a type of its own name, because serde
/// takes a plain reference for one into the message.
pub type Label = &'static str;

/// Decodes a list of at most `MOST` things.
///
/// # Errors
/// When it is longer, or damaged.
pub fn list<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MOST} things")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(thing) = sequence.next_element()? {
                if list.len() >= MOST {
                    return Err(A::Error::custom("a list is too long"));
                }
                list.push(thing);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(List::<T, MOST>(PhantomData))
}

/// Decodes a map of at most `MOST` pairs.
///
/// # Errors
/// When it is larger, or damaged.
pub fn map<'de, D, K, V, const MOST: usize>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    struct Map<K, V, const MOST: usize>(PhantomData<(K, V)>);

    impl<'de, K, V, const MOST: usize> Visitor<'de> for Map<K, V, MOST>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
    {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MOST} pairs")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Self::Value, A::Error> {
            let (mut map, mut count) = (BTreeMap::new(), 0);
            while let Some((key, value)) = pairs.next_entry()? {
                count += 1;
                if count > MOST {
                    return Err(A::Error::custom("a map is too large"));
                }
                map.insert(key, value);
            }
            Ok(map)
        }
    }

    deserializer.deserialize_map(Map::<K, V, MOST>(PhantomData))
}

/// Decodes one of the words that this program knows.
///
/// # Errors
/// When it is another one, or damaged.
pub fn label<'de, D: Deserializer<'de>>(
    deserializer: D,
    known: &[Label],
) -> Result<Label, D::Error> {
    let text = String::deserialize(deserializer)?;
    let found = known.iter().find(|label| **label == text);
    found
        .copied()
        .ok_or_else(|| D::Error::custom("a word that is not known"))
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    struct Small {
        #[serde(deserialize_with = "list::<_, _, 2>")]
        list: Vec<String>,
        #[serde(deserialize_with = "map::<_, _, _, 1>")]
        map: BTreeMap<u8, u8>,
    }

    fn passes(lists: usize, pairs: u8) -> bool {
        let small = Small {
            list: vec![String::new(); lists],
            map: (0..pairs).map(|key| (key, key)).collect(),
        };
        let bytes = postcard::to_allocvec(&small).unwrap();
        postcard::from_bytes::<Small>(&bytes).is_ok_and(|again| again == small)
    }

    #[test]
    fn bounds_are_kept() {
        assert!(passes(2, 1) && passes(0, 0));
        assert!(!passes(3, 0) && !passes(0, 2));
    }
}
