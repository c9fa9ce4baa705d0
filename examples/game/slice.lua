-- A frame's share of work that comes in units of unknown cost: as many as fit into a budget of time.
--
-- Work is done by calls, each for a number of units. What a unit takes, and what a call takes beyond its units (a call
-- that chooses a token also samples, and its text is put together), is measured all the time; a call is made only if it
-- will likely end within the budget.

local Slice = {}
Slice.__index = Slice

local SAFETY = 1.5 -- units are thought to take so much longer than they did on average
local NEWS = 0.1 -- weight of a new measurement
local FADE = 0.98 -- what remains of the largest excess, after each call

function Slice.new(budget)
    return setmetatable({
        budget = budget, -- in seconds
        unit = budget / 20, -- of one unit; a guess on the safe side, until there are measurements
        excess = budget / 10, -- of one call beyond its units
        seconds = 0, -- of the last slice, and what was done in it
        units = 0,
        calls = 0,
    }, Slice)
end

-- `work(units)` does at most so many, and returns how many it did, or nil if there is nothing to do; whether they are
-- such as to learn from; and whether the slice shall end.
function Slice:spend(work, now)
    local start = now()
    local before = start
    self.units, self.calls, self.seconds = 0, 0, 0
    while true do
        local left = self.budget - (before - start)
        local units = math.floor((left - self.excess) / (self.unit * SAFETY))
        -- One unit in a frame is done on the slowest machine: else it would never learn that it is faster now.
        if units < 1 and self.calls > 0 then
            return
        end
        -- A quarter of the budget at a time: a call that is far slower than expected does less harm then.
        local quarter = math.floor(self.budget / 4 / (self.unit * SAFETY))
        local done, typical, last = work(math.max(math.min(units, quarter), 1))
        if not done then
            return
        end
        local after = now()
        self:learn(done, typical, after - before)
        self.units, self.calls, self.seconds = self.units + done, self.calls + 1, after - start
        before = after
        if last then
            return
        end
    end
end

-- Other programs may have interrupted a call, so a measurement counts for twice the expected at most.
function Slice:learn(units, typical, seconds)
    if typical and units > 0 then
        self.unit = self.unit + NEWS * (math.min(seconds / units, 2 * self.unit) - self.unit)
    end
    self.excess = math.max(math.min(seconds - units * self.unit, self.budget / 4), self.excess * FADE)
end

return Slice
