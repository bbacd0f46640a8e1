//! SCAN and its like, and KEYS. What is there from the beginning of a scan to its end is found; see [`Table::scan`] for why.
//!
//! [`Table::scan`]: crate::values::Table::scan

use super::{Call, NOT_AN_INTEGER, Outcome, SYNTAX};
use crate::glob::{Case, matches};
use crate::numbers::{format_float, parse_int};
use crate::reply::{Error, error};
use crate::resp::Args;
use crate::values::{Cursor, Fields, Set, Sorted, Text};

const BAD_CURSOR: Error = error("invalid cursor");
/// Members that are looked at, if the client does not say otherwise.
const COUNT: usize = 10;

struct Options<'a> {
    cursor: Cursor,
    pattern: Option<&'a [u8]>,
    count: usize,
    kind: Option<&'a [u8]>,
}

impl<'a> Options<'a> {
    /// `first` is where the cursor is.
    fn parse(args: Args<'a>, first: usize) -> Result<Options<'a>, Error> {
        let cursor = std::str::from_utf8(args.get(first)).ok().and_then(|text| text.parse().ok());
        let cursor = Cursor::new(cursor.ok_or(BAD_CURSOR)?);
        let mut options = Options { cursor, pattern: None, count: COUNT, kind: None };
        for index in (first + 1..args.len()).step_by(2) {
            let value = args.get(index + 1);
            if index + 1 == args.len() {
                return Err(SYNTAX);
            } else if args.is(index, "COUNT") {
                let count = parse_int(value).ok_or(NOT_AN_INTEGER)?;
                options.count = usize::try_from(count).ok().filter(|n| *n > 0).ok_or(SYNTAX)?;
            } else if args.is(index, "MATCH") {
                options.pattern = Some(value);
            } else if args.is(index, "TYPE") && first == 1 {
                options.kind = Some(value);
            } else {
                return Err(SYNTAX);
            }
        }
        Ok(options)
    }

    fn fits(&self, name: &[u8]) -> bool {
        self.pattern.is_none_or(|pattern| matches(pattern, name, Case::Matters))
    }
}

/// Replies with where the scan goes on, and the head of what was found.
fn begin(call: &mut Call<'_, '_>, next: Cursor, len: usize) {
    call.reply.array(2);
    call.reply.bulk(next.value().to_string().as_bytes());
    call.reply.array(len);
}

pub(super) fn scan(call: &mut Call<'_, '_>) -> Outcome {
    let options = Options::parse(call.args, 1)?;
    let (entries, next) = call.store.scan(options.cursor, options.count);
    let is_kind = |kind: &str| options.kind.is_none_or(|k| k.eq_ignore_ascii_case(kind.as_bytes()));
    let found = entries.filter(|entry| options.fits(&entry.key) && is_kind(entry.value.kind()));
    let found: Vec<Text> = found.map(|entry| entry.key.clone()).collect();
    begin(call, next, found.len());
    found.iter().for_each(|key| call.reply.text(key));
    Ok(())
}

pub(super) fn keys(call: &mut Call<'_, '_>) -> Outcome {
    let pattern = call.args.get(1);
    let fit = call.store.iter().filter(|entry| matches(pattern, &entry.key, Case::Matters));
    let found: Vec<Text> = fit.map(|entry| entry.key.clone()).collect();
    call.reply.array(found.len());
    found.iter().for_each(|key| call.reply.text(key));
    Ok(())
}

pub(super) fn hscan(call: &mut Call<'_, '_>) -> Outcome {
    let options = Options::parse(call.args, 2)?;
    let fields = call.store.read_as::<Fields>(call.args.get(1))?;
    let (found, next) =
        found(fields.map(|fields| fields.scan(options.cursor, options.count)), &options);
    begin(call, next, 2 * found.len());
    for (name, value) in &found {
        call.reply.text(name);
        call.reply.text(value);
    }
    Ok(())
}

pub(super) fn sscan(call: &mut Call<'_, '_>) -> Outcome {
    let options = Options::parse(call.args, 2)?;
    let set = call.store.read_as::<Set>(call.args.get(1))?;
    let (found, next) = found(set.map(|set| set.scan(options.cursor, options.count)), &options);
    begin(call, next, found.len());
    found.iter().for_each(|(name, ())| call.reply.text(name));
    Ok(())
}

pub(super) fn zscan(call: &mut Call<'_, '_>) -> Outcome {
    let options = Options::parse(call.args, 2)?;
    let sorted = call.store.read_as::<Sorted>(call.args.get(1))?;
    let (found, next) =
        found(sorted.map(|sorted| sorted.scan(options.cursor, options.count)), &options);
    begin(call, next, 2 * found.len());
    for (name, score) in &found {
        call.reply.text(name);
        // A text, also where the protocol has numbers: as Redis has it.
        call.reply.bulk(format_float(*score).as_bytes());
    }
    Ok(())
}

/// Of what a scan has looked at, what fits. Where there is nothing, nothing.
fn found<V: Clone>(
    scanned: Option<(&[(Text, V)], Cursor)>,
    options: &Options<'_>,
) -> (Vec<(Text, V)>, Cursor) {
    let (members, next) = scanned.unwrap_or((&[], Cursor::new(0)));
    (members.iter().filter(|(name, _)| options.fits(name)).cloned().collect(), next)
}
