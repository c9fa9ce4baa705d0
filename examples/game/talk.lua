-- A conversation of several characters from one model. Each has a session of its own that begins with the same scene
-- (computed once, then copied), and hears what the others say. All decisions depend on tokens alone, never on time, so
-- a seed gives the same conversation on every machine, however the work is divided.

local Talk = {}
Talk.__index = Talk

local CONTEXT = 512
local LEAST_TOKENS = 12 -- of a line
local ENOUGH_TOKENS = 24 -- it ends at the first end of a sentence from here on,
local MOST_TOKENS = 48 -- or here
local MOST_TRIES = 10 -- to go on with a line that is shorter
local STOPS = { '"', "\n" }

-- `characters` have a name, a nature (text that only they begin with) and cues: openings of their lines in turn.
function Talk.new(trion, model, scene, characters, seed)
    local self = setmetatable({
        trion = trion,
        model = model,
        characters = characters,
        sessions = {}, -- of the characters
        scene = model:session({ context = CONTEXT }),
        state = "scene",
        speaker = #characters, -- the first one is next
        lines = 0, -- that were begun
        tokens = 0, -- chosen so far
        limit = math.huge, -- of them
        paused = false, -- whether the last step ended within a pass through the model
        transcript = {},
    }, Talk)
    self.scene:push_text(scene)
    for i, character in ipairs(characters) do
        character.session = model:session({ context = CONTEXT })
        self.sessions[i] = character.session
        character.seed = seed + i
        character.heard = "" -- what it does not know yet
        character.line = "" -- what it says, or said last
    end
    return self
end

-- Someone from outside says something to character `to`. It is heard, and answered, when the present line has ended.
function Talk:say(text, to)
    self.said = text
    self.addressed = to
end

-- One step of at most `units`. Returns how many it took, or nil if there is nothing to do before next() is called; then
-- whether these are nothing but units of a token (those of a prompt are cheaper); then whether the frame's work should
-- end here, because what comes next cannot be divided.
function Talk:work(units)
    if self.state == "scene" then
        return self:work_scene(units)
    elseif self.state == "cast" then
        self:begin_character()
        return 0, false, true
    elseif self.state == "natures" then
        return self:work_natures(units)
    elseif self.state == "turn" then
        self:begin_line()
        return 0
    elseif self.state == "line" then
        return self:work_line(units)
    end
end

-- Goes on to the next line.
function Talk:next()
    if self.state == "pause" then
        self.state = "turn"
    end
end

function Talk:work_scene(units)
    local event = self.scene:compute(units)
    self.paused = event.kind == self.trion.TRION_EVENT_MORE
    if event.kind == self.trion.TRION_EVENT_READY then
        self.state = "cast"
    end
    return tonumber(event.units), false, self.state == "cast"
end

-- The next character that has no place in the scene yet gets one.
function Talk:begin_character()
    for _, character in ipairs(self.characters) do
        if not character.home then
            local session = character.session
            session:assign(self.scene)
            session:push_text(character.nature, true)
            session:set_sampler({ temperature = 0.8, top_p = 0.9, repetition_penalty = 1.1, seed = character.seed })
            character.home = session:length()
            return
        end
    end
    self.state = "natures"
end

-- What the characters are is computed for all of them together: each weight is read once.
function Talk:work_natures(units)
    local events = self.trion.compute(self.sessions, units)
    local done, ready = 0, 0
    for i = 0, #self.sessions - 1 do
        done = done + tonumber(events[i].units)
        ready = ready + (events[i].kind == self.trion.TRION_EVENT_READY and 1 or 0)
    end
    self.paused = ready < #self.sessions
    if not self.paused then
        self.state = "turn"
    end
    return done, false
end

function Talk:begin_line()
    if self.said then
        for _, character in ipairs(self.characters) do
            character.heard = character.heard .. self.said .. "\n\n"
        end
    end
    self.speaker = self.said and self.addressed or self.speaker % #self.characters + 1
    self.said = nil

    local character = self.characters[self.speaker]
    local session = character.session
    character.turns = (character.turns or 0) + 1
    character.cue = character.cues[(character.turns - 1) % #character.cues + 1]
    local news = character.heard .. character.cue .. ', "'
    local tokens, count = self.model:encode((character.tail or "") .. news, true)
    if session:length() + count + MOST_TOKENS > CONTEXT then
        -- It remembers who it is, what it said last, and what it was told.
        session:rewind(character.home)
        tokens, count = self.model:encode(character.last .. news, true)
    end
    session:push(tokens, count)
    character.heard, character.line = "", ""
    self.text = self.model:text(STOPS)
    self.line_tokens, self.tries = 0, 0
    self.lines = self.lines + 1
    self.state = "line"
end

function Talk:work_line(units)
    local trion, character = self.trion, self.characters[self.speaker]
    local session = character.session
    local event = session:advance(units)
    units = tonumber(event.units)
    self.paused = event.kind == trion.TRION_EVENT_MORE
    if self.paused then
        return units, self.line_tokens > 0
    end
    if event.kind == trion.TRION_EVENT_DONE then -- the model ended the text, which ends the line
        self:end_line("", false)
        return units, false
    end
    self.tokens = self.tokens + 1
    local piece, stopped = self.text:push(event.token)
    if stopped and self.line_tokens < LEAST_TOKENS and self.tries < MOST_TRIES then
        -- Too short a line: the model chooses again. (It may have no other choice, so not for ever.)
        self.tries = self.tries + 1
        session:rewind(session:length() - 1)
        self.text = self.model:text(STOPS)
    else
        self.line_tokens = self.line_tokens + 1
        character.line = character.line .. piece
        local sentence = character.line:match("[.!?]$") and not character.line:match("%f[%a][MDS][rt]s?%.$")
        if stopped or (sentence and self.line_tokens >= ENOUGH_TOKENS) then
            self:end_line(piece, stopped)
        elseif self.line_tokens == MOST_TOKENS then
            character.line = character.line .. "--"
            self:end_line("--", false)
        end
    end
    if self.tokens == self.limit then
        self.state = "end"
    end
    return units, false
end

-- `piece` is what the last token added to the line, and `stopped` whether that token also has what ended it.
function Talk:end_line(piece, stopped)
    local character = self.characters[self.speaker]
    local close = '"\n\n'
    character.line = character.line:gsub("[,;:]$", ".") -- a book would go on behind the quote
    if character.line == "" then
        character.line = "..."
    end
    character.last = ('%s, "%s%s'):format(character.cue, character.line, close)
    if stopped then
        -- Its own session goes on as the others', whatever else was in the token that ended the line.
        character.session:rewind(character.session:length() - 1)
        character.tail = piece .. close
    else
        character.tail = (piece == "--" and piece or "") .. close
    end
    for _, other in ipairs(self.characters) do
        if other ~= character then
            other.heard = other.heard .. character.last
        end
    end
    self.transcript[#self.transcript + 1] = ("%s: %s"):format(character.name, character.line)
    self.state = "pause"
end

return Talk
