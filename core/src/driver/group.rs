//! Connections that are ended together, such as those of one server.

use crate::timer::Tick;
use crate::token::Token;

/// The number of such a group. The default is a group like any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Group(u32);

impl Group {
    /// The group of this number.
    pub const fn new(number: u32) -> Group {
        Group(number)
    }
}

/// The groups that drain.
#[derive(Debug, Default)]
pub(super) struct Draining {
    groups: Vec<Drain>,
    /// Connections that have received nothing yet, and until when they are not told.
    newcomers: Vec<(Tick, Token)>,
}

#[derive(Debug)]
struct Drain {
    group: Group,
    /// Connections of it that are registered, in whatever phase.
    left: usize,
    /// The slot from which on connections have not been told; none if all have.
    untold: Option<usize>,
    /// Until when those are not told that have received nothing yet.
    patience: Tick,
}

impl Draining {
    pub(super) fn begin(&mut self, group: Group, left: usize, patience: Tick) {
        self.groups.push(Drain { group, left, untold: Some(0), patience });
    }

    /// Until when those of a group are not told that have received nothing yet.
    pub(super) fn patience(&self, group: Group) -> Tick {
        let drain = self.groups.iter().find(|drain| drain.group == group);
        drain.map_or(0, |drain| drain.patience)
    }

    /// One that has received nothing yet is told later.
    pub(super) fn tell_later(&mut self, until: Tick, token: Token) {
        self.newcomers.push((until, token));
    }

    /// Those that are to be told now.
    pub(super) fn take_due(&mut self, now: Tick) -> Vec<Token> {
        let newcomers = self.newcomers.drain(..);
        let (due, later): (Vec<_>, Vec<_>) = newcomers.partition(|(until, _)| *until <= now);
        self.newcomers = later;
        due.into_iter().map(|(_, token)| token).collect()
    }

    /// When the first of them is to be told.
    pub(super) fn next_due(&self) -> Option<Tick> {
        self.newcomers.iter().map(|(until, _)| *until).min()
    }

    /// A group whose connections have not all been told, and from which slot on.
    pub(super) fn untold(&self) -> Option<(Group, usize)> {
        self.groups.iter().find_map(|drain| Some((drain.group, drain.untold?)))
    }

    /// All up to that slot have been told; none: all there are.
    pub(super) fn told(&mut self, group: Group, next: Option<usize>) {
        self.groups
            .iter_mut()
            .filter(|drain| drain.group == group)
            .for_each(|drain| drain.untold = next);
    }

    pub(super) fn end(&mut self, group: Group) {
        self.groups.retain(|drain| drain.group != group);
    }

    pub(super) fn has(&self, group: Group) -> bool {
        self.groups.iter().any(|drain| drain.group == group)
    }

    pub(super) fn left(&self, group: Group) -> usize {
        let drain = self.groups.iter().find(|drain| drain.group == group);
        drain.map_or(0, |drain| drain.left)
    }

    pub(super) fn one_more(&mut self, group: Group) {
        self.groups
            .iter_mut()
            .filter(|drain| drain.group == group)
            .for_each(|drain| drain.left += 1);
    }

    pub(super) fn one_less(&mut self, group: Group) {
        self.groups
            .iter_mut()
            .filter(|drain| drain.group == group)
            .for_each(|drain| drain.left -= 1);
    }
}

/// Connections that nobody has closed.
#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) all: usize,
    /// Those that no server owns.
    pub(super) unowned: usize,
}

impl Open {
    pub(super) fn one_more(&mut self, group: Group) {
        self.all += 1;
        self.unowned += usize::from(group == Group::default());
    }

    /// `was_open`: it was counted until now.
    pub(super) fn one_less(&mut self, group: Group, was_open: bool) {
        self.all -= usize::from(was_open);
        self.unowned -= usize::from(was_open && group == Group::default());
    }
}
