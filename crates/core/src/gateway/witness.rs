//! The witness, for the process that speaks to it: see [`crate::ha::WitnessAsk`].

use std::time::Duration;

use crate::flow::GroupId;
use crate::ha::{WitnessAsk, WitnessView};
use crate::time::Time;

use super::Gateway;

impl Gateway {
    /// A process that speaks to the witness has come, until it calls [`Gateway::close_witness`].
    pub fn open_witness(&mut self) {
        self.with_cluster(|cluster| cluster.ha.open_witness());
    }

    /// It is gone.
    pub fn close_witness(&mut self) {
        self.with_cluster(|cluster| cluster.ha.close_witness());
    }

    /// The question that is not answered, if its number is another one.
    pub fn witness_ask(&self, after: u64) -> Option<WitnessAsk> {
        self.cluster()?.ha().witness_ask(after)
    }

    /// Whether there is a question with another number.
    pub fn has_witness_ask(&self, after: u64) -> bool {
        let ha = self.cluster().map(|cluster| cluster.ha());
        ha.is_some_and(|ha| ha.has_witness_ask(after))
    }

    /// The witness has answered the question with that number: who has the lease of each group, and
    /// for how long from the question on if it is this unit. Or why it has not.
    pub fn handle_witness(
        &mut self,
        now: Time,
        number: u64,
        answer: Result<&[(GroupId, Option<String>)], &str>,
        lasts: Duration,
    ) {
        self.in_cluster(now, |cluster, _| {
            cluster.ha.handle_witness(now, number, answer, lasts);
        });
    }

    /// The witness as this unit sees it; none without `[ha.witness]`.
    pub fn witness(&self) -> Option<WitnessView<'_>> {
        self.cluster()?.ha().witness_view()
    }
}
