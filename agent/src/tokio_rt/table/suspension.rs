//! Which `.await` each task is suspended at.

use std::{collections::HashMap, sync::Arc};

use crate::{
    host::heap::Heap,
    tokio_rt::{
        await_point::{AwaitPoints, SourceLine},
        cell::State,
        file::{Answers, Questions},
        sighting::Sighting,
    },
};

/// The points of one file's futures.
pub(super) struct Suspensions<'a> {
    /// In the order of the questions.
    points: Vec<Option<&'a AwaitPoints>>,
    /// Lines that tasks share.
    lines: HashMap<(usize, u64), Arc<SourceLine>>,
}

impl<'a> Suspensions<'a> {
    pub(super) fn of(questions: &Questions, answers: &'a Answers) -> Self {
        let of = |address: u64| answers.await_points.get(&address);
        let vtables = questions.vtables.iter();
        Self {
            points: vtables.map(|vtable| of(vtable.address)).collect(),
            lines: HashMap::new(),
        }
    }

    /// The line that a task waits at; `place` is its vtable's in the
    /// questions.
    pub(super) fn at(
        &mut self,
        heap: &Heap,
        place: usize,
        seen: &Sighting,
    ) -> Option<Arc<SourceLine>> {
        let points = (*self.points.get(place)?)?;
        if !is_suspended(seen.cell.state) {
            return None;
        }
        let mut bytes = [0; 8];
        let told = bytes.get_mut(..usize::from(points.size))?;
        heap.read(seen.address.checked_add(points.offset)?, told)
            .ok()?;
        // One that has been polled meanwhile may stand anywhere.
        let now = State(heap.word(seen.address).ok()?);
        if !is_suspended(now) {
            return None;
        }
        let value = u64::from_le_bytes(bytes);
        let point = points.points.get(&value)?;
        let line = self.lines.entry((place, value));
        let line = line.or_insert_with(|| Arc::new(point.clone()));
        Some(Arc::clone(line))
    }
}

/// Whether the future is there and nobody polls it.
fn is_suspended(state: State) -> bool {
    !state.is_running() && !state.is_complete() && state.references() > 0
}
