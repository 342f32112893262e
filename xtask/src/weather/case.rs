//! A case: what happens, and what must be seen.

use anyhow::Result;

use super::setup::Setup;
use super::world::World;

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// Its name: the kind of weather first.
    pub name: &'static str,
    /// Where somebody has met it.
    pub source: &'static str,
    /// What happens, and what must follow.
    pub what: &'static str,
    /// Whether it belongs to the few that `cargo xtask test` runs.
    pub is_quick: bool,
    /// The pair that it begins with.
    pub setup: Setup,
    /// Lets it happen, and looks.
    pub run: fn(&mut World) -> Result<()>,
}

impl Case {
    /// A case that is not quick, on the plain pair.
    pub(crate) const fn new(
        name: &'static str,
        source: &'static str,
        what: &'static str,
        run: fn(&mut World) -> Result<()>,
    ) -> Case {
        Case {
            name,
            source,
            what,
            is_quick: false,
            setup: Setup::PLAIN,
            run,
        }
    }

    /// The same as a quick one.
    pub(crate) const fn quick(self) -> Case {
        Case {
            is_quick: true,
            ..self
        }
    }

    /// The same with another pair.
    pub(crate) const fn on(self, setup: Setup) -> Case {
        Case { setup, ..self }
    }

    /// Says what it is.
    pub(crate) fn print(&self) {
        let quick = if self.is_quick { ", quick" } else { "" };
        println!("{} ({}{quick})\n    {}", self.name, self.source, self.what);
    }
}
