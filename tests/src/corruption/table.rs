//! `docs/corruption.md`: the outcomes of all cases, as a table for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Case, Damage, GAP_MAX, HEALS_WITHIN, Moment, Outcome, Place, Role};

/// The document.
pub fn render(outcomes: &BTreeMap<Case, Outcome>) -> String {
    let mut text = format!(
        "# What damage to a disk comes to\n\
         \n\
         This page is made by a test, which holds it against what happens (`tests/tests/corruption_matrix.rs`;\n\
         `KRITA_BLESS=1` makes it anew). In each case one node of three is damaged in one place, once before it is\n\
         started and once while it runs and is restarted later. In all of them clients read no wrong value and \
         miss no\n\
         acknowledged one, and no shard is without service for {} s.\n\
         \n\
         - **heals**: within {} s all replicas are equal, and the node leads and serves from its own disk. Nobody did\n\
         \x20 anything.\n\
         - **heals, N restarts**: the same, but the process ended N times by itself and was started again.\n\
         - **refuses**: the node does not run, and names the file. The others serve. What says who the node is is\n\
         \x20 never made up: restore the file, or replace the node.\n\
         \n\
         | place | damage | leader, at rest | leader, running | follower, at rest | follower, running |\n\
         |---|---|---|---|---|---|\n",
        GAP_MAX.as_secs(),
        HEALS_WITHIN.as_secs()
    );
    for place in Place::ALL {
        for damage in Damage::ALL {
            let _ = write!(text, "| {} | {} |", place.name(), damage.name());
            for role in [Role::Leader, Role::Follower] {
                for moment in [Moment::AtRest, Moment::Running] {
                    let outcome = outcomes.get(&Case { place, damage, role, moment });
                    let _ = write!(text, " {} |", outcome.map_or("-".to_owned(), cell));
                }
            }
            text.push('\n');
        }
    }
    text
}

fn cell(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Absent => "no such place".to_owned(),
        Outcome::Heals { restarts: 0 } => "heals".to_owned(),
        Outcome::Heals { restarts: 1 } => "heals, 1 restart".to_owned(),
        Outcome::Heals { restarts } => format!("heals, {restarts} restarts"),
        Outcome::Refuses { .. } => "refuses".to_owned(),
        Outcome::ReadsFail => "reads fail".to_owned(),
        Outcome::StaysOut { .. } => "stays out".to_owned(),
    }
}
