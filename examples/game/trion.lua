-- Trion for LuaJIT: the declarations come from trion.h itself, so that this file and the library cannot disagree.
--
--     local trion = require("trion").load("libtrion.so", header_text)
--     local model = trion.open("model.safetensors")
--     local session = model:session({ context = 256 })
--     local text = model:text()
--     session:set_sampler({ temperature = 0.8, seed = 7 })
--     session:push_text("Once upon a time")
--     repeat
--         local event = session:advance(1000)
--         if event.kind == trion.TRION_EVENT_TOKEN then io.write((text:push(event.token))) end
--     until event.kind == trion.TRION_EVENT_DONE or session:length() == 100
--
-- What fails is a Lua error that says what the library said. Handles are freed by the garbage collector, in any order;
-- it does not know how large they are, so `free` what you are done with. Every function and constant of the header is
-- there as a field: trion.trion_version(), trion.TRION_FEATURE_TEXT. Nothing here needs callbacks, which LuaJIT allows
-- only from calls that it has not compiled.

local ffi = require("ffi")

local lib -- set by load()
local failure -- a trion_error that every call writes to

-- What LuaJIT understands of a header: no comments, no preprocessor. Numbers that are #defined become constants.
local function declarations(header)
    header = header:gsub("\r", ""):gsub("/%*.-%*/", ""):gsub("#ifdef __cplusplus.-#endif", "")
    local lines = {}
    for line in header:gmatch("[^\n]+") do
        local name, value = line:match("^#%s*define%s+(TRION_[%w_]+)%s+([%dxX%s()<|+*-]+)$")
        if name then
            line = ("static const int %s = %s;"):format(name, value)
        elseif line:match("^%s*#") then
            line = ""
        end
        lines[#lines + 1] = line
    end
    return (table.concat(lines, "\n"):gsub("TRION_API", ""))
end

local function check(status, message)
    if status ~= lib.TRION_OK then
        error("trion: " .. (message or ffi.string(lib.trion_status_string(tonumber(status)))), 3)
    end
end

-- check() for functions with an `error` parameter, which is `failure`.
local function check_error(status)
    if status ~= lib.TRION_OK then
        error("trion: " .. ffi.string(failure.message), 3)
    end
end

-- A struct of options from a table of its fields; nil has the defaults.
local function options(name, fields)
    local struct = ffi.new(name)
    struct.struct_size = ffi.sizeof(struct)
    for field, value in pairs(fields or {}) do
        struct[field] = value
    end
    return struct
end

-- An object around a handle. `free` gives it back before the collector would.
local function object(class, pointer, free)
    return setmetatable({ handle = ffi.gc(pointer, free), release = free }, class)
end

local function free(self)
    if self.handle ~= nil then
        self.release(ffi.gc(self.handle, nil))
        self.handle = nil
    end
end

local function class()
    local methods = { free = free }
    methods.__index = methods
    return methods
end

-- Session -------------------------------------------------------------------------------------------------------------

local Session = class()

local function session(pointer, model)
    local self = object(Session, pointer, lib.trion_session_free)
    self.model = model
    self.event = ffi.new("trion_event")
    self.count = ffi.new("size_t[1]")
    self.tokens_out = ffi.new("const uint32_t *[1]")
    return self
end

-- Another session that has come to the same point.
function Session:fork()
    local out = ffi.new("trion_session *[1]")
    check_error(lib.trion_session_fork(self.handle, nil, out, failure))
    return session(out[0], self.model)
end

-- Comes to the point where `from` is, sampler included, without new memory.
function Session:assign(from)
    check_error(lib.trion_session_assign(self.handle, from.handle, failure))
end

-- Fields of trion_sampler_options; nil for always the most probable token.
function Session:set_sampler(fields)
    local sampler = fields and options("trion_sampler_options", fields)
    check_error(lib.trion_session_set_sampler(self.handle, sampler, failure))
end

-- `tokens` is a table, or an array of uint32_t with its `count`.
function Session:push(tokens, count)
    if type(tokens) == "table" then
        count = #tokens
        tokens = ffi.new("uint32_t[?]", count, tokens)
    end
    check_error(lib.trion_session_push(self.handle, tokens, count, failure))
end

-- `plain` for text in the middle, which gets no beginning-of-text token.
function Session:push_text(text, plain)
    local flags = plain and lib.TRION_ENCODE_PLAIN or 0
    check_error(lib.trion_session_push_text(self.handle, text, #text, flags, failure))
end

-- Computes for at most `units`; without, until a token is chosen. Gives a trion_event, valid until the next call.
function Session:advance(units)
    check(lib.trion_session_advance(self.handle, units or ffi.cast("size_t", -1), self.event))
    return self.event
end

-- advance() without choosing a token: ends with TRION_EVENT_READY when all that was pushed is computed.
function Session:compute(units)
    check(lib.trion_session_compute(self.handle, units or ffi.cast("size_t", -1), self.event))
    return self.event
end

-- The next advance() does nothing. (On this thread; for another one hand it the pointer `session.handle`.)
function Session:cancel()
    lib.trion_session_cancel(self.handle)
end

function Session:rewind(length)
    check_error(lib.trion_session_rewind(self.handle, length, failure))
end

-- Every token so far: a pointer, valid until the next call that changes the session, and their number.
function Session:tokens()
    check(lib.trion_session_tokens(self.handle, self.tokens_out, self.count))
    return self.tokens_out[0], tonumber(self.count[0])
end

function Session:length()
    return (select(2, self:tokens()))
end

-- Units that the next token costs at most.
function Session:token_units()
    check(lib.trion_session_token_units(self.handle, self.count))
    return tonumber(self.count[0])
end

-- Everything as a string, for a saved game.
function Session:save()
    check(lib.trion_session_saved_size(self.handle, self.count))
    local size = self.count[0]
    local buffer = ffi.new("uint8_t[?]", size)
    check_error(lib.trion_session_save(self.handle, buffer, size, self.count, failure))
    return ffi.string(buffer, self.count[0])
end

function Session:load(state)
    check_error(lib.trion_session_load(self.handle, state, #state, failure))
end

-- Text ----------------------------------------------------------------------------------------------------------------

local Text = class()

-- The text that is known with this token, and whether a stop string was met.
function Text:push(token)
    check(lib.trion_text_push(self.handle, token, self.piece))
    return ffi.string(self.piece.data, self.piece.size), self.piece.stopped ~= 0
end

-- What was held back.
function Text:finish()
    check(lib.trion_text_finish(self.handle, self.piece))
    return ffi.string(self.piece.data, self.piece.size)
end

-- Model ---------------------------------------------------------------------------------------------------------------

local Model = class()

function Model:info()
    local info = ffi.new("trion_model_info")
    check(lib.trion_model_get_info(self.handle, info, ffi.sizeof(info)))
    return info
end

-- Fields of trion_session_options.
function Model:session(fields)
    local out = ffi.new("trion_session *[1]")
    local struct = options("trion_session_options", fields)
    check_error(lib.trion_session_new(self.handle, struct, nil, out, failure))
    return session(out[0], self)
end

-- A text that tokens are pushed to; it ends before the first of the strings in the table `stops`.
function Model:text(stops)
    stops = stops or {}
    local out = ffi.new("trion_text *[1]")
    local strings = ffi.new("const char *[?]", #stops, stops)
    local struct = options("trion_text_options", { stops = strings, stop_count = #stops })
    check_error(lib.trion_text_new(self.handle, struct, out, failure))
    local self = object(Text, out[0], lib.trion_text_free)
    self.piece = ffi.new("trion_piece")
    return self
end

-- The tokens of a text: an array of uint32_t and their number.
function Model:encode(text, plain)
    local flags, count = plain and lib.TRION_ENCODE_PLAIN or 0, ffi.new("size_t[1]")
    check_error(lib.trion_model_encode(self.handle, text, #text, flags, nil, 0, count, failure))
    local tokens = ffi.new("uint32_t[?]", count[0])
    check_error(lib.trion_model_encode(self.handle, text, #text, flags, tokens, count[0], count, failure))
    return tokens, tonumber(count[0])
end

-- The library ---------------------------------------------------------------------------------------------------------

local trion = {}

local Runtime = class()

local function model(pointer)
    return object(Model, pointer, lib.trion_model_free)
end

-- `library` is a path, or a name that the system finds; `header` is the text of the trion.h that belongs to it.
function trion.load(library, header)
    assert(not lib, "trion: already loaded")
    ffi.cdef(declarations(header))
    lib = ffi.load(library)
    assert(lib.trion_abi_is_compatible(lib.TRION_ABI_VERSION) == 1, "trion: the library does not serve this header")
    failure = ffi.new("trion_error")
    return setmetatable(trion, { __index = function(_, name) return lib[name] end })
end

-- Where models compute: fields of trion_runtime_options, { device = "auto", threads = 4 } for instance.
function trion.runtime(fields)
    local out = ffi.new("trion_runtime *[1]")
    check_error(lib.trion_runtime_new(options("trion_runtime_options", fields), out, failure))
    return object(Runtime, out[0], lib.trion_runtime_free)
end

-- The handles in a table of sessions, their number, and a place for an event of each.
local function list(sessions)
    local handles, count = ffi.new("trion_session *[?]", #sessions), #sessions
    for i, each in ipairs(sessions) do
        handles[i - 1] = each.handle
    end
    return handles, count, ffi.new("trion_event[?]", count)
end

-- Session:advance() for a table of sessions of one model, at most TRION_MAX_SESSIONS, which share the units and go
-- through the model together. Gives their events, an array that begins at 0.
function trion.advance(sessions, units)
    local handles, count, events = list(sessions)
    check_error(lib.trion_sessions_advance(handles, count, units or ffi.cast("size_t", -1), events, failure))
    return events
end

-- The same for Session:compute().
function trion.compute(sessions, units)
    local handles, count, events = list(sessions)
    check_error(lib.trion_sessions_compute(handles, count, units or ffi.cast("size_t", -1), events, failure))
    return events
end

-- A model from a file or a directory; with a runtime, or nil for the calling thread alone.
function trion.open(path, runtime)
    local out = ffi.new("trion_model *[1]")
    check_error(lib.trion_model_open(runtime and runtime.handle, path, out, failure))
    return model(out[0])
end

-- A model from bytes, which are copied: a string, or a pointer and a size, which LÖVE's Data objects have.
function trion.copy(data, size, runtime)
    local out = ffi.new("trion_model *[1]")
    check_error(lib.trion_model_copy(runtime and runtime.handle, data, size or #data, out, failure))
    return model(out[0])
end

return trion
