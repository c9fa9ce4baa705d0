function love.conf(t)
    t.identity = "trion-game"
    t.version = "11.4"
    t.window.title = "Trion: a night at anchor"
    t.window.width = 960
    t.window.height = 600
    t.window.vsync = 1
    t.window.msaa = 4
    t.modules.audio = false
    t.modules.sound = false
    t.modules.physics = false
    t.modules.joystick = false
    t.modules.video = false
    for _, argument in ipairs(arg or {}) do
        if argument == "--test" then -- as fast as it can, most often without a graphics card
            t.window.vsync = 0
            t.window.msaa = 0
        end
    end
end
