//! The search for an order: Wing & Gong's depth-first search with Lowe's memoization, without recursion.

use std::collections::BTreeSet;

use super::Limits;
use super::register::{Call, Problem, Register, Step};

/// How a search ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// There is an order.
    Order,
    /// There is none.
    Nothing,
    /// The steps did not suffice to tell.
    TooHard,
}

/// The longest order that a failed search came to, as positions in [`Problem::calls`], and the register after it.
pub(super) struct Longest {
    pub(super) order: Vec<usize>,
    pub(super) register: Register,
}

/// Searches, and says how many operations it tried.
pub(super) fn search(problem: &Problem, limits: Limits) -> (Found, u64) {
    let mut search = Search::new(problem, limits);
    let found = search.run();
    (found, search.steps)
}

/// Searches, and remembers the longest order on the way. Slower than [`search`].
pub(super) fn search_longest(problem: &Problem, limits: Limits) -> Longest {
    let mut search = Search::new(problem, limits);
    search.longest = Some(Longest { order: Vec::new(), register: Register::ABSENT });
    search.run();
    search.longest.expect("set above, and only replaced since")
}

/// Calls and returns in the order of time, as a doubly linked list from which an operation can be lifted out and
/// put back in constant time. Entry 0 is the head, and both ends.
struct Timeline {
    next: Vec<u32>,
    previous: Vec<u32>,
    /// The operation, and whether this is its return.
    entries: Vec<(u32, bool)>,
    /// For each operation its entries: the call and, if its outcome is known, the return.
    places: Vec<(u32, Option<u32>)>,
}

const HEAD: u32 = 0;

impl Timeline {
    fn new(problem: &Problem) -> Self {
        // At equal times calls come before returns: touching operations count as concurrent.
        let mut moments = Vec::with_capacity(2 * problem.calls.len());
        for (position, call) in problem.calls.iter().enumerate() {
            let position = u32::try_from(position).expect("fewer than four thousand million operations");
            moments.push((call.invoked_at, false, position));
            if let Some(at) = call.responded_at {
                moments.push((at, true, position));
            }
        }
        moments.sort_unstable();
        let count = u32::try_from(moments.len() + 1).expect("fewer than four thousand million moments");
        let mut places = vec![(HEAD, None); problem.calls.len()];
        let mut entries = vec![(u32::MAX, false)];
        for (entry, (_, is_return, position)) in (1..count).zip(moments) {
            entries.push((position, is_return));
            let place = &mut places[position as usize];
            if is_return {
                place.1 = Some(entry);
            } else {
                place.0 = entry;
            }
        }
        let next = (0..count).map(|entry| (entry + 1) % count).collect();
        let previous = (0..count).map(|entry| (entry + count - 1) % count).collect();
        Self { next, previous, entries, places }
    }

    fn unlink(&mut self, entry: u32) {
        let (previous, next) = (self.previous[entry as usize], self.next[entry as usize]);
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
    }

    fn link(&mut self, entry: u32) {
        let (previous, next) = (self.previous[entry as usize], self.next[entry as usize]);
        self.next[previous as usize] = entry;
        self.previous[next as usize] = entry;
    }

    fn lift(&mut self, call: usize) {
        let (invocation, response) = self.places[call];
        self.unlink(invocation);
        if let Some(response) = response {
            self.unlink(response);
        }
    }

    /// Undoes the last `lift` that has not been undone.
    fn put_back(&mut self, call: usize) {
        let (invocation, response) = self.places[call];
        if let Some(response) = response {
            self.link(response);
        }
        self.link(invocation);
    }
}

/// The known operations that state a version, and the lowest such version that is not ordered yet.
struct Stated {
    /// (version, operation), sorted.
    by_version: Vec<(u64, usize)>,
    /// For each operation its place in `by_version`.
    places: Vec<Option<usize>>,
    /// Everything before this place is ordered.
    first_left: usize,
}

impl Stated {
    fn new(problem: &Problem) -> Self {
        let stated = |(position, call): (usize, &Call)| {
            let version = call.step.stated_version()?;
            call.responded_at.map(|_| (version, position))
        };
        let mut by_version: Vec<(u64, usize)> = problem.calls.iter().enumerate().filter_map(stated).collect();
        by_version.sort_unstable();
        let mut places = vec![None; problem.calls.len()];
        for (place, &(_, position)) in by_version.iter().enumerate() {
            places[position] = Some(place);
        }
        Self { by_version, places, first_left: 0 }
    }

    /// The lowest version that an operation states which is not `ordered`.
    fn lowest_left(&mut self, ordered: &[bool]) -> u64 {
        while let Some(&(version, position)) = self.by_version.get(self.first_left) {
            if !ordered[position] {
                return version;
            }
            self.first_left += 1;
        }
        u64::MAX
    }

    fn put_back(&mut self, call: usize) {
        if let Some(place) = self.places[call] {
            self.first_left = self.first_left.min(place);
        }
    }
}

/// Which operations the scan looks at: first those whose outcome is known, then the unknown writes, so that an
/// unknown write is only thought of where the known operations have come to an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pass {
    Known,
    Unknown,
}

/// What became of an operation that was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// It is the next in the order.
    Chosen,
    /// Another must come first, or this one was tried here before.
    Passed,
    /// It fits and would change nothing, but leads nowhere; then nothing else does.
    DeadEnd,
}

/// One chosen operation, and what it was applied to.
struct Choice {
    call: usize,
    /// It observes and changes nothing: every order that goes on from here can begin with it, so there is no
    /// alternative to try.
    without_alternative: bool,
    register_before: Register,
    needed_before: Option<Register>,
}

struct Search<'a> {
    problem: &'a Problem,
    limits: Limits,
    timeline: Timeline,
    ordered: Vec<bool>,
    /// Known operations that are not ordered yet.
    known_left: usize,
    /// Which known operations state a version of the key, by that version. Versions grow, so the register's
    /// may never pass the lowest one that is left.
    stated: Stated,
    choices: Vec<Choice>,
    register: Register,
    /// After an unknown write: the register without it. The next operation must be one that needs the write.
    needed: Option<Register>,
    /// Identifies the set of ordered operations: the exclusive or of a number of 128 pseudo-random bits for each.
    /// Two different sets collide with a probability that is negligible next to that of a memory fault.
    set: u128,
    entered: BTreeSet<u128>,
    steps: u64,
    longest: Option<Longest>,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem, limits: Limits) -> Self {
        Self {
            problem,
            limits,
            timeline: Timeline::new(problem),
            ordered: vec![false; problem.calls.len()],
            known_left: problem.known(),
            stated: Stated::new(problem),
            choices: Vec::new(),
            register: Register::ABSENT,
            needed: None,
            set: 0,
            entered: BTreeSet::new(),
            steps: 0,
            longest: None,
        }
    }

    fn run(&mut self) -> Found {
        let mut pass = Pass::Known;
        let mut entry = self.timeline.next[HEAD as usize];
        while self.known_left > 0 {
            let (call, is_return) = self.timeline.entries[entry as usize];
            let over = entry == HEAD || is_return;
            if over && pass == Pass::Known {
                // Nothing behind a return may come before it: this pass is over.
                (pass, entry) = (Pass::Unknown, self.timeline.next[HEAD as usize]);
                continue;
            }
            let look = match over {
                true => Look::DeadEnd,
                false if self.pass_of(call as usize) == pass => self.choose(call as usize),
                false => Look::Passed,
            };
            match look {
                Look::Chosen => (pass, entry) = (Pass::Known, self.timeline.next[HEAD as usize]),
                Look::Passed => entry = self.timeline.next[entry as usize],
                Look::DeadEnd => {
                    self.note_longest();
                    let Some(undone) = self.undo_to_alternative() else { return Found::Nothing };
                    pass = self.pass_of(undone);
                    entry = self.timeline.next[self.timeline.places[undone].0 as usize];
                }
            }
            if self.steps > self.limits.steps_max {
                return Found::TooHard;
            }
        }
        Found::Order
    }

    fn pass_of(&self, call: usize) -> Pass {
        match self.problem.calls[call].responded_at {
            Some(_) => Pass::Known,
            None => Pass::Unknown,
        }
    }

    /// Orders the operation next if that may lead anywhere new.
    fn choose(&mut self, call: usize) -> Look {
        self.steps += 1;
        let step = self.problem.calls[call].step;
        if self.problem.calls[call].twin_before.is_some_and(|twin| !self.ordered[twin]) {
            return Look::Passed;
        }
        if self.needed.is_some_and(|without| fits_as_well(step, without)) {
            return Look::Passed;
        }
        let Some(register) = step.apply(self.register) else { return Look::Passed };
        let known = self.problem.calls[call].responded_at.is_some();
        let needed = (!known).then_some(self.register);
        let without_alternative = step.observes_only() && register == self.register;
        let set = self.set ^ scatter(call as u64);
        self.order(call, true);
        let possible = register.version <= self.stated.lowest_left(&self.ordered);
        if !possible || !self.enter(set, register, needed) {
            self.order(call, false);
            return if without_alternative { Look::DeadEnd } else { Look::Passed };
        }
        let (register_before, needed_before) = (self.register, self.needed);
        self.choices.push(Choice { call, without_alternative, register_before, needed_before });
        self.timeline.lift(call);
        (self.set, self.register, self.needed) = (set, register, needed);
        Look::Chosen
    }

    fn order(&mut self, call: usize, ordered: bool) {
        let known = usize::from(self.problem.calls[call].responded_at.is_some());
        self.ordered[call] = ordered;
        if ordered {
            self.known_left -= known;
        } else {
            self.known_left += known;
            self.stated.put_back(call);
        }
    }

    /// Remembers a place of the search; false if it was there before.
    fn enter(&mut self, set: u128, register: Register, needed: Option<Register>) -> bool {
        let place = set ^ fingerprint(register, 1) ^ needed.map_or(0, |needed| fingerprint(needed, 2));
        if self.entered.len() < self.limits.cache_entries_max {
            self.entered.insert(place)
        } else {
            !self.entered.contains(&place)
        }
    }

    /// Undoes choices up to and with the last one to which there may be an alternative.
    fn undo_to_alternative(&mut self) -> Option<usize> {
        loop {
            let choice = self.choices.pop()?;
            self.timeline.put_back(choice.call);
            self.order(choice.call, false);
            self.set ^= scatter(choice.call as u64);
            (self.register, self.needed) = (choice.register_before, choice.needed_before);
            if !choice.without_alternative {
                return Some(choice.call);
            }
        }
    }

    fn note_longest(&mut self) {
        let Some(longest) = &mut self.longest else { return };
        // An unknown write that nothing needed yet explains nothing.
        let useful = self.choices.len() - usize::from(self.needed.is_some());
        if useful > longest.order.len() {
            longest.order = self.choices[..useful].iter().map(|choice| choice.call).collect();
            longest.register = self.needed.unwrap_or(self.register);
        }
    }
}

/// Whether an operation could as well come before an unknown write, whose register without it is given: it is
/// possible there, and either overwrites the write anyway, or neither changes nor learns anything.
fn fits_as_well(step: Step, without: Register) -> bool {
    match step.apply(without) {
        None => false,
        Some(after) => !step.observes_only() || after == without,
    }
}

/// 128 bits that look random, for a small number (two rounds of SplitMix64, Steele et al. 2014).
fn scatter(number: u64) -> u128 {
    let mix = |mut bits: u64| {
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    };
    let high = mix(number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15));
    let low = mix(high ^ mix(number ^ 0xd1b5_4a32_d192_ed03));
    u128::from(high) << 64 | u128::from(low)
}

fn fingerprint(register: Register, salt: u64) -> u128 {
    let value = match register.value {
        None => 0,
        Some(value) => value.number() + 1,
    };
    let small = (value << 3) | (u64::from(register.exact) << 2) | salt;
    scatter(small ^ 1 << 62).rotate_left(17) ^ scatter(register.version ^ (salt << 61)).rotate_left(71)
}
