//! How Redis would hold a value: OBJECT ENCODING tells. Here each kind has one form.

use crate::numbers::parse_int;
use crate::values::{Text, Value};

/// Strings up to this length lie beside their key, in bytes.
const EMBEDDED_BYTES_MAX: usize = 44;
/// Members, and the length of each in bytes, up to which a collection is one piece of memory.
const SMALL_LEN_MAX: usize = 128;
const SMALL_BYTES_MAX: usize = 64;
/// Members up to which a set of integers is sorted.
const INTEGERS_MAX: usize = 512;

pub(crate) fn of(value: &Value) -> &'static str {
    let is_short = |text: &Text| text.len() <= SMALL_BYTES_MAX;
    match value {
        Value::Text(text) if parse_int(text).is_some() => "int",
        Value::Text(text) if text.len() <= EMBEDDED_BYTES_MAX => "embstr",
        Value::Text(_) => "raw",
        Value::List(_) => "quicklist",
        Value::Set(set) => {
            let is_integer = |(name, ()): &(Text, ())| parse_int(name).is_some();
            match set.len() <= INTEGERS_MAX && set.iter().all(is_integer) {
                true => "intset",
                false => "hashtable",
            }
        }
        Value::Fields(fields) => {
            let is_small = fields.len() <= SMALL_LEN_MAX
                && fields.iter().all(|(name, value)| is_short(name) && is_short(value));
            if is_small { "listpack" } else { "hashtable" }
        }
        Value::Sorted(sorted) => {
            let is_small =
                sorted.len() <= SMALL_LEN_MAX && sorted.iter().all(|(name, _)| is_short(name));
            if is_small { "listpack" } else { "skiplist" }
        }
    }
}
