//! What Krita's tests share: the recorder of histories, the linearizability checker, helpers for real processes.
//!
//! The tests themselves stand in `tests/tests`, one file per kind: layers and tidiness, the simulation of a whole
//! cluster, real processes on loopback. Histories and the checker are pure: they run on virtual time as well as on
//! real time. Only [`mod@process`] and [`mod@source`] touch the machine.

pub mod corruption;
pub mod history;
pub mod linearizability;
pub mod process;
pub mod rest;
pub mod simulation;
pub mod source;
