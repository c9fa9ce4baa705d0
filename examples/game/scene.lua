-- The ship's deck, from circles and lines. Nothing here knows of models: it draws characters, their lines, and numbers.

local utf8 = require("utf8")

local g = love.graphics

local Scene = {}
Scene.__index = Scene

local WIDTH, HEIGHT = 960, 540 -- the numbers are below
local HORIZON = 300
local MOON = { x = 618, y = 74, r = 30 }
local PLACES = { -- where the characters are, their heads, and their bubbles
    { x = 716, head = 366, left = 516, width = 400, bottom = 318 },
    { x = 238, head = 352, left = 44, width = 400, bottom = 296 },
}

local PAPER, INK, FADED = { 0.97, 0.93, 0.83 }, { 0.17, 0.13, 0.12 }, { 0.52, 0.36, 0.24 }
local SKIN, AMBER, WOOD, RED = { 0.87, 0.67, 0.52 }, { 1, 0.74, 0.36 }, { 0.27, 0.18, 0.13 }, { 0.85, 0.35, 0.25 }

local function gradient(x, y, width, height, top, bottom)
    local mesh = g.newMesh({
        { x, y, 0, 0, unpack(top) },
        { x + width, y, 0, 0, unpack(top) },
        { x + width, y + height, 0, 0, unpack(bottom) },
        { x, y + height, 0, 0, unpack(bottom) },
    }, "fan", "static")
    return mesh
end

-- A disc of light: radius 1, bright in the middle.
local function light()
    local vertices = { { 0, 0, 0, 0, 1, 1, 1, 1 } }
    for i = 0, 48 do
        local a = i / 48 * 2 * math.pi
        vertices[#vertices + 1] = { math.cos(a), math.sin(a), 0, 0, 1, 1, 1, 0 }
    end
    return g.newMesh(vertices, "fan", "static")
end

local function paint(colour, strength, alpha)
    strength = strength or 1
    g.setColor(colour[1] * strength, colour[2] * strength, colour[3] * strength, alpha or 1)
end

function Scene.new()
    local self = setmetatable({
        time = 0,
        speech = g.newFont(16),
        label = g.newFont(12),
        light = light(),
        deck = gradient(-20, 424, WIDTH + 40, 130, { 0.23, 0.15, 0.12 }, { 0.36, 0.24, 0.16 }),
        mast = gradient(0, 0, 1, 1, { 0.17, 0.11, 0.1 }, { 0.3, 0.2, 0.14 }),
        backdrop = g.newCanvas(WIDTH, HEIGHT, { msaa = 4 }),
    }, Scene)
    g.setCanvas(self.backdrop)
    self:draw_backdrop()
    g.setCanvas()
    return self
end

function Scene:update(dt)
    self.time = self.time + dt
end

-- The character that is nearest to `x`.
function Scene:nearest(x)
    local best = 1
    for i, place in ipairs(PLACES) do
        if math.abs(place.x - x) < math.abs(PLACES[best].x - x) then
            best = i
        end
    end
    return best
end

function Scene:glow(x, y, rx, ry, colour, alpha)
    g.setBlendMode("add")
    paint(colour, 1, alpha)
    g.draw(self.light, x, y, 0, rx, ry)
    g.setBlendMode("alpha")
end

-- What does not move: sky, moon and island.
function Scene:draw_backdrop()
    g.setColor(1, 1, 1)
    g.draw(gradient(0, 0, WIDTH, HORIZON + 12, { 0.04, 0.06, 0.15 }, { 0.24, 0.3, 0.46 }))
    local random = love.math.newRandomGenerator(5)
    for _ = 1, 150 do
        local depth = random:random()
        g.setColor(1, 0.97, 0.9, 0.2 + 0.7 * depth * depth)
        g.circle("fill", random:random() * WIDTH, random:random() ^ 1.4 * HORIZON * 0.9, 0.6 + depth)
    end
    self:glow(MOON.x, MOON.y, 190, 190, { 0.6, 0.68, 0.85 }, 0.38)
    g.setColor(0.96, 0.94, 0.85)
    g.circle("fill", MOON.x, MOON.y, MOON.r)
    g.setColor(0.84, 0.83, 0.77)
    g.circle("fill", MOON.x - 9, MOON.y - 6, 6)
    g.circle("fill", MOON.x + 8, MOON.y + 9, 8)
    g.circle("fill", MOON.x + 10, MOON.y - 12, 4)
    g.setColor(0.12, 0.16, 0.27)
    g.polygon("fill", 660, 302, 730, 284, 792, 240, 850, 184, 868, 190, 884, 186, 920, 228, 960, 252, 960, 302)
    g.setColor(0.09, 0.12, 0.21)
    g.polygon("fill", 600, 302, 690, 290, 760, 268, 830, 274, 890, 246, 960, 264, 960, 302)
    g.polygon("fill", 0, 302, 0, 286, 60, 290, 150, 302)
end

function Scene:draw_sea()
    local t = self.time
    for layer = 0, 6 do
        local y = HORIZON + layer * layer * 2.6 + layer * 3
        local size = 1 + layer * 1.1
        local near = layer / 6
        g.setColor(0.13 - 0.07 * near, 0.2 - 0.08 * near, 0.33 - 0.13 * near)
        local length, speed = 0.035 - 0.003 * layer, 0.7 + 0.12 * layer
        local bottom = y + 20 + 6 * layer -- the next layer hides what is below
        local before
        for x = 0, WIDTH, 16 do
            local top = y + size * (math.sin(x * length + t * speed + layer * 2) + 0.6 * math.sin(x * length * 2.3 - t))
            if before then
                g.polygon("fill", x - 16, before, x, top, x, bottom, x - 16, bottom)
            end
            before = top
        end
    end
    g.setBlendMode("add")
    for i = 0, 15 do
        local width = 14 + i * 4 + 9 * math.sin(t * 1.9 + i * 1.7)
        g.setColor(0.75, 0.78, 0.72, 0.22 + 0.12 * math.sin(t * 2.3 + i * 2.9))
        local x = MOON.x + 5 * math.sin(t * 1.3 + i * 2.1)
        g.rectangle("fill", x - width / 2, HORIZON + 3 + i * 7, width, 2, 1, 1)
    end
    g.setBlendMode("alpha")
end

function Scene:draw_ship()
    local t = self.time
    -- Rigging.
    g.setColor(0.08, 0.08, 0.11)
    g.setLineWidth(1.5)
    for side = -1, 1, 2 do
        for i = 0, 2 do
            g.line(481 + side * 8, -60, 481 + side * (345 + i * 32), 384)
        end
        for step = 3, 12 do
            local f = step / 13
            g.line(481 + side * (8 + 337 * f), -60 + 444 * f, 481 + side * (8 + 401 * f), -60 + 444 * f)
        end
    end
    -- Rail.
    for x = -4, WIDTH + 30, 43 do
        paint(WOOD, 0.8)
        g.rectangle("fill", x, 388, 9, 42, 3, 3)
    end
    paint(WOOD, 1.15)
    g.rectangle("fill", -20, 380, WIDTH + 40, 11, 3, 3)
    paint(WOOD, 1.55)
    g.rectangle("fill", -20, 380, WIDTH + 40, 3)
    -- Deck.
    g.setColor(1, 1, 1)
    g.draw(self.deck)
    g.setColor(0.14, 0.09, 0.07, 0.8)
    for i = -16, 16 do
        g.line(480 + i * 44, 424, 480 + i * 72, 556)
    end
    paint(WOOD, 0.7)
    g.rectangle("fill", -20, 420, WIDTH + 40, 7)
    -- Mast.
    g.setColor(1, 1, 1)
    g.draw(self.mast, 468, 440, -math.pi / 2, 510, 15)
    g.draw(self.mast, 496, -70, math.pi / 2, 510, 15)
    paint(WOOD, 0.75)
    g.ellipse("fill", 482, 440, 17, 5)
    for y = 120, 400, 70 do
        g.rectangle("fill", 466, y, 32, 5, 2, 2)
    end
    -- Lantern.
    local swing = 0.16 * math.sin(t * 1.5)
    local x, y = 524 + 34 * math.sin(swing), 334 + 34 * math.cos(swing)
    local flicker = 0.92 + 0.05 * math.sin(t * 13) + 0.03 * math.sin(t * 29)
    g.setColor(0.1, 0.08, 0.08)
    g.setLineWidth(3)
    g.line(497, 338, 524, 334)
    g.setLineWidth(1.5)
    g.line(524, 334, x, y)
    self:glow(x, y + 12, 250, 210, AMBER, 0.3 * flicker)
    self:glow(x, y + 12, 46, 46, AMBER, 0.75 * flicker)
    self:glow(x - 30, 478, 330, 52, AMBER, 0.2 * flicker)
    paint({ 1, 0.88, 0.55 })
    g.rectangle("fill", x - 7, y + 3, 14, 18, 3, 3)
    g.setColor(0.12, 0.09, 0.08)
    g.rectangle("fill", x - 9, y, 18, 4, 2, 2)
    g.rectangle("fill", x - 9, y + 20, 18, 4, 2, 2)
    g.rectangle("line", x - 7, y + 3, 14, 18)
end

local function shadow(x, y, radius)
    g.setColor(0, 0, 0, 0.32)
    g.ellipse("fill", x, y, radius, radius / 5)
end

function Scene:draw_captain(x, speaking)
    local t = self.time
    local nod = speaking and 1.5 * math.sin(t * 10) or 0
    shadow(x, 463, 46)
    -- Barrel.
    g.setColor(0.36, 0.23, 0.14)
    g.polygon("fill", x - 27, 412, x + 27, 412, x + 33, 437, x + 27, 463, x - 27, 463, x - 33, 437)
    g.setColor(0.16, 0.13, 0.13)
    g.polygon("fill", x - 29, 420, x + 29, 420, x + 31, 426, x - 31, 426)
    g.polygon("fill", x - 31, 449, x + 31, 449, x + 29, 455, x - 29, 455)
    -- Legs and boots.
    g.setColor(0.75, 0.7, 0.62)
    g.polygon("fill", x - 8, 408, x + 34, 408, x + 38, 420, x + 36, 440, x + 24, 440, x + 24, 424, x - 8, 424)
    g.setColor(0.1, 0.08, 0.09)
    g.polygon("fill", x + 22, 436, x + 38, 436, x + 39, 455, x + 50, 458, x + 50, 464, x + 22, 464)
    -- Coat, with its buttons.
    g.setColor(0.15, 0.2, 0.38)
    g.polygon("fill", x - 19, 372, x + 15, 372, x + 23, 418, x + 14, 440, x - 28, 440, x - 24, 400)
    g.setColor(0.11, 0.15, 0.3)
    g.polygon("fill", x - 19, 372, x - 10, 372, x - 14, 440, x - 28, 440, x - 24, 400)
    g.setColor(0.85, 0.68, 0.32)
    for i = 0, 3 do
        g.circle("fill", x + 11 + i * 1.5, 382 + i * 10, 2)
    end
    -- Head, beard and hat.
    local y = 354 + nod
    paint(SKIN)
    g.circle("fill", x, y, 15)
    g.circle("fill", x + 15, y + 1, 4)
    g.setColor(0.9, 0.89, 0.86)
    g.arc("fill", "pie", x + 1, y + 3, 16, 0.15, math.pi * 0.95)
    g.polygon("fill", x - 10, y + 12, x + 12, y + 12, x + 4, y + 29)
    g.setColor(0.12, 0.1, 0.1)
    g.circle("fill", x + 7, y - 3, 1.8)
    g.setColor(0.1, 0.1, 0.16)
    g.polygon("fill", x - 26, y - 8, x - 14, y - 21, x, y - 25, x + 15, y - 20, x + 27, y - 8, x, y - 12)
    g.setColor(0.85, 0.68, 0.32)
    g.setLineWidth(2)
    g.line(x - 26, y - 8, x, y - 12, x + 27, y - 8)
    -- Arm and pipe, which he takes from his mouth to speak.
    local px, py = x + 22, y + 9
    if speaking then
        px, py = x + 38, 388
    end
    g.setLineWidth(9)
    g.setColor(0.18, 0.24, 0.44)
    g.line(x - 6, 382, x + 10, 402, px + 6, py + 8)
    paint(SKIN)
    g.circle("fill", px + 7, py + 6, 5)
    g.setLineWidth(2.5)
    g.setColor(0.32, 0.19, 0.11)
    g.line(px - 8, py - 2, px + 8, py + 2)
    g.rectangle("fill", px + 5, py - 7, 8, 10, 2, 2)
    for i = 0, 4 do
        local age = (t * 0.35 + i / 5) % 1
        g.setColor(0.8, 0.82, 0.88, 0.28 * (1 - age))
        g.circle("fill", px + 9 + 9 * math.sin(age * 5 + i) * age, py - 8 - 50 * age, 2 + 7 * age)
    end
end

function Scene:draw_tom(x, speaking)
    local t = self.time
    local nod = speaking and 1.5 * math.sin(t * 11) or 0
    shadow(x, 462, 26)
    -- Legs.
    g.setColor(0.2, 0.19, 0.26)
    g.polygon("fill", x - 12, 416, x + 12, 416, x + 13, 452, x + 3, 452, x, 428, x - 3, 452, x - 13, 452)
    paint(SKIN, 0.92)
    g.rectangle("fill", x - 12, 450, 8, 10)
    g.rectangle("fill", x + 4, 450, 8, 10)
    g.ellipse("fill", x - 10, 461, 8, 3)
    g.ellipse("fill", x + 6, 461, 8, 3)
    -- Striped shirt.
    g.setColor(0.9, 0.87, 0.8)
    g.polygon("fill", x - 12, 382, x + 12, 382, x + 15, 420, x - 15, 420)
    g.setColor(0.68, 0.24, 0.22)
    for i = 0, 3 do
        g.rectangle("fill", x - 12 - i * 0.8, 387 + i * 9, 24 + i * 1.6, 4)
    end
    -- Arms: one on the rail, one that speaks with him.
    g.setLineWidth(7)
    g.setColor(0.9, 0.87, 0.8)
    g.line(x + 11, 387, x + 25, 400, x + 30, 384)
    paint(SKIN)
    g.circle("fill", x + 30, 382, 4)
    local hx, hy = x - 19, 416
    if speaking then
        hx, hy = x - 30, 392 + 4 * math.sin(t * 5)
    end
    g.setColor(0.84, 0.8, 0.73)
    g.line(x - 10, 387, x - 20, 402, hx, hy)
    paint(SKIN)
    g.circle("fill", hx, hy, 4)
    -- Head, hair and kerchief.
    local y = 368 + nod
    g.setColor(0.75, 0.24, 0.2)
    g.polygon("fill", x - 11, 380, x + 11, 380, x, 392)
    paint(SKIN)
    g.circle("fill", x, y, 13)
    g.circle("fill", x - 13, y + 1, 3)
    g.setColor(0.62, 0.38, 0.16)
    g.arc("fill", "pie", x + 1, y - 2, 14.5, math.pi * 0.98, math.pi * 2.2)
    g.circle("fill", x + 11, y + 1, 5)
    g.setColor(0.12, 0.1, 0.1)
    g.circle("fill", x - 6, y - 0.5, 1.7)
    g.setLineWidth(1.5)
    g.line(x - 9, y + 6, x - 5, y + 7.5)
end

function Scene:draw_player(player)
    local t = self.time
    local x, foot = player.x, 500
    local step = player.walking and math.sin(t * 11) or 0
    local y = foot - 3 * math.abs(step)
    shadow(x, foot + 1, 26)
    g.push()
    g.translate(x, y)
    g.scale(player.facing, 1)
    g.setColor(0.09, 0.08, 0.09)
    g.setLineWidth(8)
    g.line(-5, -22, -5 + 8 * step, -2)
    g.line(5, -22, 5 - 8 * step, -2)
    -- Cloak and hood.
    g.setColor(0.13, 0.27, 0.25)
    g.polygon("fill", -12, -62, 10, -62, 21, -14, 12, -11, 0, -14, -13, -11, -23, -14 - 2 * step)
    g.setColor(0.1, 0.21, 0.2)
    g.polygon("fill", -12, -62, -3, -62, -8, -13, -23, -14 - 2 * step)
    paint(SKIN, 0.95)
    g.circle("fill", 3, -70, 11)
    g.setColor(0.16, 0.32, 0.29)
    g.arc("fill", "pie", 0, -71, 15, math.pi * 0.55, math.pi * 1.85)
    g.polygon("fill", -13, -66, 4, -60, -14, -52)
    g.setColor(0.1, 0.08, 0.08)
    g.circle("fill", 8, -71, 1.6)
    -- A lantern in the hand.
    g.setLineWidth(6)
    g.setColor(0.16, 0.32, 0.29)
    g.line(4, -54, 20, -42)
    g.setLineWidth(1.5)
    g.setColor(0.1, 0.08, 0.08)
    g.line(21, -42, 21, -36)
    paint({ 1, 0.88, 0.55 })
    g.rectangle("fill", 16, -36, 10, 13, 2, 2)
    g.pop()
    local hand = x + 21 * player.facing
    self:glow(hand, y - 30, 70, 62, AMBER, 0.32)
    self:glow(hand, y - 30, 20, 20, AMBER, 0.6)
end

-- What the player asks, at his feet.
function Scene:draw_question(player)
    local width = self.speech:getWidth(player.words) + 28
    local left = math.max(12, math.min(WIDTH - 12 - width, player.x - width / 2))
    paint({ 0.8, 0.9, 0.84 })
    g.rectangle("fill", left, 506, width, 27, 9, 9)
    g.polygon("fill", player.x - 8, 507, player.x + 8, 507, player.x, 499)
    g.setFont(self.speech)
    paint(INK)
    g.print(player.words, left + 14, 510)
end

-- Words above a head, in a bubble that is as high as the lines that have appeared.
function Scene:draw_bubble(words, letters, label, place, strength)
    local inside = place.width - 28
    local _, lines = self.speech:getWrap(words, inside)
    local left_over, visible = letters, {}
    for _, line in ipairs(lines) do
        if left_over <= 0 then
            break
        end
        local length = utf8.len(line)
        visible[#visible + 1] = length <= left_over and line or line:sub(1, utf8.offset(line, left_over + 1) - 1)
        left_over = left_over - length
    end
    local height = math.max(#visible, 1) * 20 + 36
    local top = place.bottom - height
    local tail = math.max(place.left + 26, math.min(place.left + place.width - 26, place.x))
    g.setColor(0, 0, 0, 0.25)
    g.rectangle("fill", place.left + 3, top + 4, place.width, height, 12, 12)
    paint(PAPER, strength)
    g.rectangle("fill", place.left, top, place.width, height, 12, 12)
    g.polygon("fill", tail - 11, place.bottom, tail + 11, place.bottom, place.x, place.bottom + 14)
    g.setFont(self.label)
    paint(FADED, strength)
    g.print(label, place.left + 14, top + 8)
    g.setFont(self.speech)
    paint(INK, 1)
    for i, line in ipairs(visible) do
        g.print(line, place.left + 14, top + 6 + i * 20)
    end
end

-- `shown` are the letters of each character's line that have appeared.
function Scene:draw(talk, shown, player)
    local bob = math.floor(3.5 * math.sin(self.time * 0.9) * 2 + 0.5) / 2
    g.setScissor(0, 0, WIDTH, HEIGHT)
    g.setColor(1, 1, 1)
    g.draw(self.backdrop)
    self:draw_sea()
    g.push()
    g.translate(0, bob)
    self:draw_ship()
    local line = talk.characters[talk.speaker].line
    local speaking = (talk.state ~= "pause" or shown[talk.speaker] < utf8.len(line)) and talk.speaker
    self:draw_tom(PLACES[1].x, speaking == 1)
    self:draw_captain(PLACES[2].x, speaking == 2)
    self:draw_player(player)
    for i, character in ipairs(talk.characters) do
        if shown[i] > 0 then
            local strength = talk.speaker == i and 1 or 0.86
            self:draw_bubble(character.line, math.floor(shown[i]), character.cue .. ":", PLACES[i], strength)
        end
    end
    if player.words then
        self:draw_question(player)
    end
    g.pop()
    g.setScissor()
end

-- Below the scene: what the model's share of a frame was.
function Scene:draw_numbers(slice, history, tokens)
    g.setColor(0.055, 0.055, 0.085)
    g.rectangle("fill", 0, HEIGHT, WIDTH, 60)
    g.setFont(self.label)
    g.setColor(0.82, 0.8, 0.74)
    g.print(
        ("slice %4.2f of %.2f ms     units %3d     calls %2d     tokens %d     %d frames/s"):format(
            slice.seconds * 1e3,
            slice.budget * 1e3,
            slice.units,
            slice.calls,
            tokens,
            love.timer.getFPS()
        ),
        20,
        HEIGHT + 13
    )
    g.setColor(0.5, 0.5, 0.54)
    g.print("arrow keys: walk     space: ask whoever is nearest     escape: leave", 20, HEIGHT + 33)
    -- The latest slices, and the budget as a line.
    local scale = 32 / slice.budget
    for i, seconds in ipairs(history) do
        local height = math.min(seconds * scale, 46)
        paint(seconds > slice.budget and RED or AMBER, 0.85)
        g.rectangle("fill", 698 + i * 2, HEIGHT + 54 - height, 1.5, height)
    end
    g.setColor(0.82, 0.8, 0.74, 0.6)
    g.setLineWidth(1)
    g.line(698, HEIGHT + 22, 942, HEIGHT + 22)
    g.printf("budget", 600, HEIGHT + 14, 90, "right")
end

return Scene
