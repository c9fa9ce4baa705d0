-- A night at anchor: two characters that speak from one model, at 60 frames a second. README.md says how to run it.

local ffi = require("ffi")
local utf8 = require("utf8")
local trion = require("trion")
local Scene = require("scene")
local Slice = require("slice")
local Talk = require("talk")

local SCENE = "It was a still night, and the good ship lay at anchor before the island. The moon stood over the water. "
    .. "Old Captain Hale sat upon a barrel beneath the lantern and smoked his pipe, and the boy Tom, who had never "
    .. "been at sea before, leaned upon the rail. They talked of ships and storms, of the island, and of the treasure "
    .. "that lay there.\n\n"

local CHARACTERS = {
    {
        name = "Tom",
        nature = "Tom was a merry lad of twelve, full of questions, and afraid of nothing but ghosts.\n\n",
        cues = {
            "Tom looked at the island, and asked",
            "Tom drew nearer, and whispered",
            "Tom laughed, and said",
            "Tom pointed at the dark water, and cried",
        },
    },
    {
        name = "The captain",
        nature = "The captain had sailed for forty years, and he loved to tell of wonders and of dangers.\n\n",
        cues = {
            "The captain took the pipe from his mouth, and answered",
            "The captain shook his head, and said",
            "The captain looked out over the sea, and said",
            "The captain smiled, and answered",
        },
    },
}

local QUESTIONS = {
    "Is there really a treasure on that island?",
    "Did you hear that sound, out on the water?",
    "Have you ever seen a ghost?",
    "What was the worst storm that you were in?",
    "Where shall we sail to, in the morning?",
}

local LETTERS_A_SECOND = 40 -- how fast a line appears; the model writes faster
local READING = 2 -- seconds between two lines

local root = love.filesystem.getSource() .. "/../../"
local options = {
    lib = nil, -- libtrion; the repository's own, if nothing is said
    header = root .. "include/trion.h",
    model = root .. "models/tales-14m.safetensors",
    device = "cpu", -- or "cuda", "cuda:1", "auto"
    seed = 8,
    ["budget-ms"] = 2, -- of a frame
    test = nil, -- where to put a picture: plays by itself, as fast as it can, checks what it did, and ends
    transcript = nil, -- where to put what was said, after a test
    tokens = 300, -- that a test writes
    ["draw-every"] = 1, -- of so many frames one is drawn: without a graphics card that is most of the work
}

local scene, talk, slice, player
local shown = {} -- letters of each character's line that have appeared
local lines = 0 -- of the conversation that have begun to appear
local waited = 0
local asked = 0
local history = {} -- seconds of the latest slices, for the picture
local frame = 0
local test = {
    wall = {}, -- seconds of each slice
    cpu = {}, -- the same, by the thread's clock
    most_beyond = 0, -- calls of one slice that began when the budget was spent
    paused = 0, -- slices that ended within a pass through the model
}

local function exists(path)
    local file = io.open(path, "rb")
    return file and file:close() and true
end

local function read(path)
    local file = assert(io.open(path, "rb"))
    local bytes = file:read("*a")
    file:close()
    return bytes
end

local function write(path, bytes)
    local file = assert(io.open(path, "wb"))
    file:write(bytes)
    file:close()
end

local function parse(arguments)
    local i = 1
    while i <= #arguments do
        local name = arguments[i]:match("^%-%-(.+)$")
        assert(name and arguments[i + 1], "expected --name value, found " .. arguments[i])
        local number = type(options[name]) == "number"
        options[name] = number and assert(tonumber(arguments[i + 1]), name) or arguments[i + 1]
        i = i + 2
    end
    if not options.lib then
        local file = ({ Windows = "trion.dll", OSX = "libtrion.dylib" })[ffi.os] or "libtrion.so"
        options.lib = file -- the system's
        for _, folder in ipairs({ "target/release/", "target/package/lib/" }) do
            options.lib = exists(root .. folder .. file) and root .. folder .. file or options.lib
        end
    end
end

-- Seconds that this thread computed: other programs add little to them.
local function thread_clock()
    if ffi.os ~= "Linux" then
        return love.timer.getTime
    end
    ffi.cdef("struct game_time { long seconds, nanoseconds; }; int clock_gettime(int clock, struct game_time *time);")
    local time = ffi.new("struct game_time")
    return function()
        ffi.C.clock_gettime(3, time) -- CLOCK_THREAD_CPUTIME_ID
        return tonumber(time.seconds) + tonumber(time.nanoseconds) * 1e-9
    end
end

-- The player asks a character the next question.
local function ask(to)
    local words = QUESTIONS[asked % #QUESTIONS + 1]
    asked = asked + 1
    talk:say(('The stranger asked, "%s"'):format(words), to)
    player.words, player.line = words, talk.lines
end

function love.load(arguments)
    parse(arguments)
    trion.load(options.lib, read(options.header))
    local model = trion.open(options.model, trion.runtime({ device = options.device }))
    talk = Talk.new(trion, model, SCENE, CHARACTERS, options.seed)
    slice = Slice.new(options["budget-ms"] / 1000)
    scene = Scene.new()
    player = { x = 480, facing = 1, walking = false }
    for i = 1, #CHARACTERS do
        shown[i] = 0
    end
    if options.test then
        talk.limit = options.tokens
        test.clock = thread_clock()
    end
end

local function work(units)
    if options.test then
        local time = love.timer.getTime()
        test.first = test.first or time
        test.beyond = test.beyond + (time - test.first > slice.budget and 1 or 0)
        test.most_beyond = math.max(test.most_beyond, test.beyond)
    end
    return talk:work(units)
end

-- The model's share of a frame.
local function think()
    if not options.test then
        slice:spend(work, love.timer.getTime)
    else
        test.first, test.beyond = nil, 0
        local before = test.clock()
        slice:spend(work, love.timer.getTime)
        if slice.calls > 0 then
            table.insert(test.cpu, test.clock() - before)
            table.insert(test.wall, slice.seconds)
            test.paused = test.paused + (talk.paused and 1 or 0)
        end
    end
    table.insert(history, slice.seconds)
    if #history > 120 then
        table.remove(history, 1)
    end
end

-- Lines appear at a pace that can be read. In a test there is nobody who reads.
local function appear(dt)
    if talk.lines ~= lines then
        lines, shown[talk.speaker] = talk.lines, 0
    end
    local length = utf8.len(talk.characters[talk.speaker].line)
    shown[talk.speaker] = options.test and length or math.min(shown[talk.speaker] + dt * LETTERS_A_SECOND, length)
    if talk.state ~= "pause" then
        waited = 0
        return
    end
    waited = shown[talk.speaker] == length and waited + dt or 0
    if waited > READING or options.test then
        if options.test and #talk.transcript % 6 == 3 then
            ask(1) -- by the number of lines, not by time: the same in every test
        end
        talk:next()
    end
end

local function walk(dt)
    local direction = (love.keyboard.isDown("right") and 1 or 0) - (love.keyboard.isDown("left") and 1 or 0)
    if options.test then
        direction = player.x > 620 and -1 or player.x < 340 and 1 or player.facing
    end
    player.walking = direction ~= 0
    player.facing = direction ~= 0 and direction or player.facing
    player.x = math.max(60, math.min(900, player.x + direction * 150 * dt))
    if player.words and talk.lines > player.line + 2 then
        player.words = nil -- two have answered
    end
end

-- The end of a test: `picture` is what is on the screen.
local function finish(picture)
    local failed = false
    local function check(good, what)
        if not good then
            print("failed: " .. what)
            failed = true
        end
    end
    local function percentile(times, part)
        return times[math.max(1, math.ceil(#times * part))] * 1e3
    end
    local budget = options["budget-ms"]
    table.sort(test.wall)
    table.sort(test.cpu)
    print(("budget %.2f ms: %d frames, %d tokens"):format(budget, #test.wall, talk.tokens))
    for _, clock in ipairs({ "wall", "cpu" }) do
        local times = test[clock]
        local numbers = { percentile(times, 0.5), percentile(times, 0.99), percentile(times, 1) }
        print(("  %s ms: p50 %.3f, p99 %.3f, max %.3f"):format(clock, unpack(numbers)))
    end
    print("  calls of one slice beyond the budget: " .. test.most_beyond)
    print(("  slices that ended within a pass: %d"):format(test.paused))
    -- Times are told and not judged: other programs, and the host of a virtual machine, take from both clocks. That a
    -- slice stops when its budget is spent, and that it can stop within a pass, are known from counts.
    check(test.most_beyond <= 1, "at most one call of a slice begins when the budget is spent")
    check(test.paused >= #test.wall / 10, "one of ten slices ends within a pass, or more")
    local said = {}
    for _, line in ipairs(talk.transcript) do
        local name, words = line:match("^(.-): (.*)$")
        said[name] = (said[name] or 0) + #words
    end
    for _, character in ipairs(CHARACTERS) do
        check((said[character.name] or 0) >= 200, character.name .. " says at least 200 characters")
    end
    local colours, count = {}, 0
    picture:mapPixel(function(_, _, red, green, blue, alpha)
        local colour = red * 65025 + green * 255 + blue
        count = colours[colour] and count or count + 1
        colours[colour] = true
        return red, green, blue, alpha
    end)
    check(count >= 1000, "the picture has at least 1000 colours")
    write(options.test, picture:encode("png"):getString())
    if options.transcript then
        write(options.transcript, table.concat(talk.transcript, "\n") .. "\n")
    end
    love.event.quit(failed and 1 or 0)
end

function love.update(dt)
    think()
    appear(dt)
    walk(dt)
    scene:update(dt)
    if talk.state == "end" and not test.ending then
        test.ending = true
        love.graphics.captureScreenshot(finish)
    end
end

function love.draw()
    frame = frame + 1
    if frame % options["draw-every"] ~= 0 and not test.ending then
        return
    end
    scene:draw(talk, shown, player)
    scene:draw_numbers(slice, history, talk.tokens)
end

function love.keypressed(key)
    if key == "escape" then
        love.event.quit()
    elseif key == "space" and not options.test then
        ask(scene:nearest(player.x))
    end
end

-- A test has nobody who would look at LÖVE's blue screen.
local errorhandler = love.errorhandler
function love.errorhandler(message)
    if not options.test then
        return errorhandler(message)
    end
    print(debug.traceback("failed: " .. tostring(message), 2))
    return function()
        return 1
    end
end
