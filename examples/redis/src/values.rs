//! What keys hold: strings, lists, sets, hashes and sorted sets.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::ops::{Deref, Range};

use duopoll::Slice;
use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

/// Bytes that a text holds without memory of its own.
const INLINE_BYTES_MAX: usize = 38;

/// A key, a string, or an element: short ones in place, long ones as a slice.
#[derive(Clone)]
pub(crate) enum Text {
    Inline { len: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Slice(Slice),
}

const _: () = assert!(size_of::<Text>() == 40);

impl From<&[u8]> for Text {
    fn from(source: &[u8]) -> Text {
        let mut bytes = [0; INLINE_BYTES_MAX];
        match bytes.get_mut(..source.len()) {
            Some(front) => {
                front.copy_from_slice(source);
                Text::Inline { len: source.len() as u8, bytes }
            }
            None => Text::Slice(source.to_vec().into()),
        }
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Text {
        if bytes.len() > INLINE_BYTES_MAX { Text::Slice(bytes.into()) } else { bytes[..].into() }
    }
}

impl Deref for Text {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Text::Inline { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Text::Slice(slice) => slice,
        }
    }
}

impl Borrow<[u8]> for Text {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Text) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Text) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Text) -> Ordering {
        (**self).cmp(&**other)
    }
}

pub(crate) type List = VecDeque<Text>;
pub(crate) type Set = Table<()>;
pub(crate) type Fields = Table<Text>;

/// What a key holds. The large kinds are boxed, so that strings make a small entry.
pub(crate) enum Value {
    Text(Text),
    List(Box<List>),
    Set(Box<Set>),
    Fields(Box<Fields>),
    Sorted(Box<Sorted>),
}

impl Value {
    /// The kind, as the command TYPE names it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "string",
            Value::List(_) => "list",
            Value::Set(_) => "set",
            Value::Fields(_) => "hash",
            Value::Sorted(_) => "zset",
        }
    }
}

/// A kind of value.
pub(crate) trait Kind {
    /// The value as this kind, if it is one.
    fn of(value: &mut Value) -> Option<&mut Self>;
    /// An empty one.
    fn empty() -> Value;
}

macro_rules! kinds {
    ($($kind:ident $variant:ident,)*) => {$(
        impl Kind for $kind {
            fn of(value: &mut Value) -> Option<&mut $kind> {
                match value {
                    Value::$variant(value) => Some(value),
                    _ => None,
                }
            }

            fn empty() -> Value {
                Value::$variant(Default::default())
            }
        }
    )*};
}

kinds! {
    Text Text,
    List List,
    Set Set,
    Fields Fields,
    Sorted Sorted,
}

impl Default for Text {
    fn default() -> Text {
        Text::Inline { len: 0, bytes: [0; INLINE_BYTES_MAX] }
    }
}

/// A hash table that also has an order, in which any member can be picked in O(1). Removing one moves the last to
/// its place.
pub(crate) struct Table<V> {
    /// Indices of `items`.
    index: HashTable<usize>,
    items: Vec<(Text, V)>,
    hasher: DefaultHashBuilder,
}

impl<V> Default for Table<V> {
    fn default() -> Table<V> {
        Table { index: HashTable::new(), items: Vec::new(), hasher: DefaultHashBuilder::default() }
    }
}

impl<V> Table<V> {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<&V> {
        let hash = self.hasher.hash_one(name);
        let index = self.index.find(hash, |&index| *self.items[index].0 == *name)?;
        Some(&self.items[*index].1)
    }

    /// Puts a member in, or replaces its value. `name` is called only for a new one. Says whether it was new.
    pub(crate) fn insert(&mut self, name: &[u8], key: impl FnOnce() -> Text, value: V) -> bool {
        let Table { index, items, hasher } = self;
        let hash = hasher.hash_one(name);
        let same = |&index: &usize| *items[index].0 == *name;
        let rehash = |&index: &usize| hasher.hash_one(&*items[index].0);
        match index.entry(hash, same, rehash) {
            Entry::Occupied(entry) => {
                items[*entry.get()].1 = value;
                false
            }
            Entry::Vacant(entry) => {
                entry.insert(items.len());
                items.push((key(), value));
                true
            }
        }
    }

    pub(crate) fn remove(&mut self, name: &[u8]) -> bool {
        self.take(name).is_some()
    }

    pub(crate) fn take(&mut self, name: &[u8]) -> Option<(Text, V)> {
        let hash = self.hasher.hash_one(name);
        let same = |&index: &usize| *self.items[index].0 == *name;
        let index = *self.index.find(hash, same)?;
        self.remove_at(index)
    }

    /// Takes the member at a place out.
    pub(crate) fn remove_at(&mut self, place: usize) -> Option<(Text, V)> {
        let last = self.items.len().checked_sub(1).filter(|last| place <= *last)?;
        self.unlink(place);
        if place != last {
            let hash = self.hasher.hash_one(&*self.items[last].0);
            if let Some(index) = self.index.find_mut(hash, |&index| index == last) {
                *index = place;
            }
        }
        Some(self.items.swap_remove(place))
    }

    fn unlink(&mut self, place: usize) {
        let hash = self.hasher.hash_one(&*self.items[place].0);
        if let Ok(entry) = self.index.find_entry(hash, |&index| index == place) {
            entry.remove();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Text, V)> {
        self.items.iter()
    }

    /// The names, without the rest.
    pub(crate) fn into_names(self) -> impl Iterator<Item = Text> {
        self.items.into_iter().map(|(name, _)| name)
    }

    /// Up to `count` members for a scan, and where it goes on. It goes from the last place to the first: a member that takes the
    /// place of one that was removed comes from a higher one, so none that is there all the time is passed by.
    pub(crate) fn scan(&self, cursor: Cursor, count: usize) -> (&[(Text, V)], Cursor) {
        let (range, next) = cursor.range(self.items.len(), count);
        (self.items.get(range).unwrap_or_default(), next)
    }
}

/// Where a scan stands: how many places, from the first on, it has not seen. None at its beginning, and at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor(Option<NonZeroUsize>);

impl Cursor {
    pub(crate) fn new(value: u64) -> Cursor {
        Cursor(NonZeroUsize::new(usize::try_from(value).unwrap_or(usize::MAX)))
    }

    pub(crate) fn value(self) -> usize {
        self.0.map_or(0, NonZeroUsize::get)
    }

    /// The next places of a scan among `len`, and where it goes on. A table that is small is seen at once.
    pub(crate) fn range(self, len: usize, count: usize) -> (Range<usize>, Cursor) {
        let end = self.0.map_or(len, |end| end.get().min(len));
        let at_once = self.0.is_none() && len <= SMALL_LEN_MAX;
        let start = if at_once { 0 } else { end.saturating_sub(count) };
        (start..end, Cursor(NonZeroUsize::new(start)))
    }
}

/// Members that a scan gives at once, whatever it was asked for.
const SMALL_LEN_MAX: usize = 128;

/// Members in the order of their scores, then of their names.
#[derive(Default)]
pub(crate) struct Sorted {
    scores: Table<f64>,
    order: BTreeSet<(Score, Text)>,
}

impl Sorted {
    pub(crate) fn len(&self) -> usize {
        self.scores.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }

    pub(crate) fn score(&self, name: &[u8]) -> Option<f64> {
        self.scores.get(name).copied()
    }

    /// Puts a member in, or moves it.
    pub(crate) fn insert(&mut self, name: Text, score: f64) {
        if let Some(old) = self.score(&name) {
            self.order.remove(&(Score(old), name.clone()));
        }
        self.scores.insert(&name, || name.clone(), score);
        self.order.insert((Score(score), name));
    }

    pub(crate) fn remove(&mut self, name: &[u8]) -> bool {
        let Some((name, score)) = self.scores.take(name) else { return false };
        self.order.remove(&(Score(score), name))
    }

    /// Takes the member with the lowest score out, or with the highest.
    pub(crate) fn pop(&mut self, highest: bool) -> Option<(Text, f64)> {
        let popped = if highest { self.order.pop_last() } else { self.order.pop_first() };
        let (Score(score), name) = popped?;
        self.scores.remove(&name);
        Some((name, score))
    }

    /// See [`Table::scan`].
    pub(crate) fn scan(&self, cursor: Cursor, count: usize) -> (&[(Text, f64)], Cursor) {
        self.scores.scan(cursor, count)
    }

    /// All members with their scores, in order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Text, f64)> {
        self.order.iter().map(|(score, name)| (name, score.0))
    }
}

/// A score, which is never a NaN.
struct Score(f64);

impl PartialEq for Score {
    fn eq(&self, other: &Score) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Score) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Score) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}
