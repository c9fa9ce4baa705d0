//! The forward pass as a row of stages, each of many small units, so that it can stop after any of them.
//!
//! Where a session stands is plain data ([`Cursor`]); what a stage computed stays in the session's memory. A stage begins
//! when the one before is complete, and its units do not depend on each other.
//!
//! Several sessions go through the stages together: in each step those that are furthest behind, so that all come to the
//! same place. One session is the same thing with a list of one.

use super::pass::Pass;
use super::{Counts, Logits, Member, Observation, Progress};
use crate::config::Config;
use crate::model::{Layer, Model, Projection};
use crate::parallel::Parallel;

/// How far the batch under way has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Tokens of the batch; 0 when none is under way.
    pub(super) batch: usize,
    /// Stages that are complete.
    stage: usize,
    /// Units of the current stage that are complete.
    unit: usize,
}

impl Cursor {
    /// No batch is under way.
    pub(super) const IDLE: Cursor = Cursor { batch: 0, stage: 0, unit: 0 };

    /// What is least for the batch that is furthest behind; most where none is under way.
    fn place(&self) -> (usize, usize) {
        if self.batch == 0 { (usize::MAX, 0) } else { (self.stage, self.unit) }
    }
}

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Rows of the embedding, and the tables of the rotary embedding. A unit is a token.
    Embed,
    /// Norms before a projection, and quantisation. A unit is a token.
    Prepare(Projection),
    /// A projection and what follows each of its outputs. A unit is a tile of 32 rows, for every token.
    Multiply(Projection),
    /// Query and key norms, rotation, and the write to the cache. A unit is a token.
    Rotate,
    /// Attention. A unit is a head of a token.
    Attend,
    /// The norm before the head. A unit is a token.
    PrepareHead,
    /// The head. A unit is a tile of 32 rows, for every token that wants logits.
    MultiplyHead,
}

impl Stage {
    /// Whether a unit is one of the weights, for the tokens of all sessions, and not one of a session.
    const fn shares_units(self) -> bool {
        matches!(self, Stage::Multiply(_) | Stage::MultiplyHead)
    }
}

/// The stages of a block, in order.
const BLOCK: [Stage; 16] = {
    use Projection as P;
    use Stage::{Attend, Multiply, Prepare, Rotate};
    [
        Prepare(P::Query),
        Multiply(P::Query),
        Prepare(P::Key),
        Multiply(P::Key),
        Prepare(P::Value),
        Multiply(P::Value),
        Rotate,
        Attend,
        Prepare(P::Output),
        Multiply(P::Output),
        Prepare(P::Gate),
        Multiply(P::Gate),
        Prepare(P::Up),
        Multiply(P::Up),
        Prepare(P::Down),
        Multiply(P::Down),
    ]
};

/// The stage at place `index` of the whole pass, with its layer.
fn stage_at(layers: usize, index: usize) -> (usize, Stage) {
    match index.checked_sub(1) {
        None => (0, Stage::Embed),
        Some(i) if i < layers * BLOCK.len() => (i / BLOCK.len(), BLOCK[i % BLOCK.len()]),
        Some(i) if i == layers * BLOCK.len() => (0, Stage::PrepareHead),
        Some(_) => (0, Stage::MultiplyHead),
    }
}

/// Row-blocks of a token's row of the embedding and its rotary tables, of which the sines are most.
const fn embed_cost(config: &Config) -> usize {
    1 + config.head_dim / 4
}

/// Row-blocks of a pass over a vector: a norm with quantisation, or the rotation of all heads.
const fn vector_cost(elements: usize) -> usize {
    1 + elements / 256
}

/// Row-blocks of one head of attention over `positions`.
const fn attend_cost(positions: usize) -> usize {
    1 + positions / 32
}

/// Row-blocks of one token, alone, when it is number `positions` of its sequence.
pub(super) fn row_blocks_per_token(model: &Model<'_>, positions: usize) -> usize {
    let alone = Rows { tokens: 1, first: positions.saturating_sub(1), logits: 1 };
    let mut sum = 0_usize;
    for index in 0..alone.stages(model) {
        let (layer, stage) = stage_at(model.config().num_hidden_layers, index);
        let (units, cost) = alone.extent(model, layer, stage);
        sum = sum.saturating_add(units.saturating_mul(cost));
    }
    sum
}

/// Whether a projection reads an input that is not the one prepared for the projection before it.
fn needs_input(layer: &Layer<'_>, projection: Projection) -> bool {
    let source = match projection {
        Projection::Key => Projection::Query,
        Projection::Value => Projection::Key,
        Projection::Up => Projection::Gate,
        _ => return true,
    };
    let (own, other) = (layer.projection(projection), layer.projection(source));
    own.norm.is_some() || other.norm.is_some() || own.matrix.activation_span() != other.matrix.activation_span()
}

/// Spends the budget on sessions of one model, until all their tokens are computed. Whoever observes sees every stage that
/// a session completes. The order of `members` is not kept.
pub(super) fn forward(
    members: &mut [Member<'_>],
    mut budget: usize,
    parallel: &dyn Parallel,
    mut observer: Option<&mut dyn FnMut(Observation<'_>)>,
) -> Progress {
    for member in &mut *members {
        member.counts.spent = 0;
        if member.counts.has_work() {
            member.counts.logits_rows = 0;
        }
    }
    while begin(members) {
        if !members.is_sorted_by_key(Member::place) {
            members.sort_unstable_by_key(Member::place);
        }
        let Some(first) = members.first() else { break };
        let (model, (stage_index, unit)) = (first.model, first.place());
        let (layer, stage) = stage_at(model.config().num_hidden_layers, stage_index);
        let same = |member: &Member<'_>| {
            let (stage_of, unit_of) = member.place();
            stage_of == stage_index && (unit_of == unit || !stage.shares_units())
        };
        let (group, others) = members.split_at_mut(members.iter().take_while(|member| same(member)).count());
        // A session that has come further in a product is waited for there.
        let limit = match others.first().map(Member::place) {
            Some((stage_of, unit_of)) if stage_of == stage_index => unit_of,
            _ => usize::MAX,
        };
        if !assign(group, model, layer, stage, limit, budget) {
            return Progress::More;
        }
        if group.iter().any(|member| !member.units.is_empty()) {
            Pass { model, kernel: group[0].kernel, members: group, parallel }.run(layer, stage);
            if parallel.cancelled() {
                // Nobody knows which units of the stage were done. The batch can be begun again: its first stage
                // overwrites all that the others read, but the cache, where each position is written before it is read.
                for member in group.iter_mut().filter(|member| !member.units.is_empty()) {
                    member.counts.cursor = Cursor::IDLE;
                }
                return Progress::More;
            }
        }
        for member in group {
            budget = budget.saturating_sub(member.complete(layer, stage, &mut observer));
        }
    }
    Progress::Ready
}

/// Ends the batches that have come through the model. Gives whether one is under way in any of the sessions then; if there
/// was none, one begins in each that has tokens to compute: all of them together, so that the weights are read once for
/// all.
fn begin(members: &mut [Member<'_>]) -> bool {
    for member in &mut *members {
        let rows = member.counts.rows(member.options);
        // Beyond the last stage is a batch whose logits are no longer wanted, since more tokens were pushed.
        if rows.tokens > 0 && member.counts.cursor.stage >= rows.stages(member.model) {
            member.counts.done += rows.tokens;
            member.counts.cursor = Cursor::IDLE;
            if member.counts.done == member.counts.len {
                member.counts.logits_rows = rows.logits;
            }
        }
    }
    if members.iter().any(|member| member.counts.cursor != Cursor::IDLE) {
        return true;
    }
    let mut begun = false;
    for Member { counts, options, .. } in members {
        let batch = (counts.len - counts.done).min(options.max_batch);
        counts.cursor = Cursor { batch, ..Cursor::IDLE };
        begun |= batch > 0;
    }
    begun
}

/// Gives each session the units of the stage that it computes next, as many as the budget pays for and none beyond
/// `limit`. False if there are units and nothing to pay for them.
fn assign(
    group: &mut [Member<'_>],
    model: &Model<'_>,
    layer: usize,
    stage: Stage,
    limit: usize,
    mut budget: usize,
) -> bool {
    let mut together = 0;
    for member in &mut *group {
        member.extent = member.counts.rows(member.options).extent(model, layer, stage);
        together += member.extent.1;
    }
    let (mut left, mut assigned) = (0, 0);
    for member in group {
        let (units, alone) = member.extent;
        let cost = if stage.shares_units() { together } else { alone };
        let from = member.counts.cursor.unit;
        // The last unit may cost more than what is left: every call spends its budget, and a small one gets on.
        let affordable = budget.div_ceil(cost.max(1));
        let to = units.min(limit).min(from.saturating_add(affordable));
        member.units = from..to;
        left += units - from;
        assigned += to - from;
        if !stage.shares_units() {
            budget = budget.saturating_sub((to - from).saturating_mul(alone));
        }
    }
    assigned > 0 || left == 0
}

impl Member<'_> {
    fn place(&self) -> (usize, usize) {
        self.counts.cursor.place()
    }

    /// Counts the units that were assigned as done, and gives the row-blocks that they took.
    fn complete(
        &mut self,
        layer: usize,
        stage: Stage,
        observer: &mut Option<&mut dyn FnMut(Observation<'_>)>,
    ) -> usize {
        let (units, cost) = self.extent;
        let spent = self.units.len().saturating_mul(cost);
        self.counts.spent = self.counts.spent.saturating_add(spent);
        self.counts.cursor.unit = self.units.end;
        if self.units.end < units {
            return spent;
        }
        let rows = self.counts.rows(self.options);
        if let Some(observer) = observer.as_deref_mut().filter(|_| units > 0) {
            self.observe(layer, stage, &rows, observer);
        }
        self.counts.cursor.stage += 1;
        self.counts.cursor.unit = 0;
        spent
    }
}

impl Counts {
    /// The batch under way.
    pub(super) fn rows(&self, options: &super::SessionOptions) -> Rows {
        let tokens = self.cursor.batch;
        let logits = match options.logits {
            Logits::All => tokens,
            Logits::Last => usize::from(self.done + tokens == self.len),
        };
        Rows { tokens, first: self.done, logits }
    }
}

/// Tokens of a session that go through the model together.
pub(super) struct Rows {
    pub(super) tokens: usize,
    /// Position of the first.
    pub(super) first: usize,
    /// How many want logits: the last ones.
    pub(super) logits: usize,
}

impl Rows {
    fn stages(&self, model: &Model<'_>) -> usize {
        1 + model.config().num_hidden_layers * BLOCK.len() + if self.logits > 0 { 2 } else { 0 }
    }

    /// Units of a stage, and the row-blocks that each costs.
    fn extent(&self, model: &Model<'_>, layer: usize, stage: Stage) -> (usize, usize) {
        let (tokens, config) = (self.tokens, model.config());
        let layer = &model.layers()[layer];
        match stage {
            Stage::Embed => (tokens, embed_cost(config)),
            Stage::Rotate => (tokens, vector_cost(config.query_size() + config.key_value_size())),
            Stage::Prepare(p) if needs_input(layer, p) => (tokens, vector_cost(p.shape(config)[1])),
            Stage::Prepare(_) => (0, 1),
            Stage::Multiply(p) => {
                let matrix = &layer.projection(p).matrix;
                (matrix.tiles(), tokens * matrix.tile_cost())
            }
            Stage::Attend => (tokens * config.num_attention_heads, attend_cost(self.first + tokens)),
            Stage::PrepareHead => (self.logits, vector_cost(config.hidden_size)),
            Stage::MultiplyHead => (model.head().tiles(), self.logits * model.head().tile_cost()),
        }
    }
}
