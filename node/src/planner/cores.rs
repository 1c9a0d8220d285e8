//! Which core of a node takes a new replica.

/// What one core has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoreLoad {
    /// Replicas that it owns.
    pub replicas: u32,
    /// How many of these should lead.
    pub leaders: u32,
}

/// The core with the fewest replicas; of these the one with the fewest leaders; of these the first. `None`: there are
/// no cores.
pub fn core_for_new_replica(cores: &[CoreLoad]) -> Option<u16> {
    let least = (0..cores.len()).min_by_key(|core| (cores[*core].replicas, cores[*core].leaders, *core))?;
    u16::try_from(least).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_spread_over_cores() {
        let mut cores = [CoreLoad::default(); 3];
        for _ in 0..10 {
            let core = core_for_new_replica(&cores).expect("three cores");
            cores[usize::from(core)].replicas += 1;
        }
        assert_eq!(cores.map(|core| core.replicas), [4, 3, 3]);
        let load = |replicas, leaders| CoreLoad { replicas, leaders };
        assert_eq!(core_for_new_replica(&[load(4, 0), load(3, 2), load(3, 1)]), Some(2));
        assert_eq!(core_for_new_replica(&[]), None);
    }
}
