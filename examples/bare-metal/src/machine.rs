//! The machine: what happens at reset, the debugger's console, a counter of time, and how deep the stack went.

use core::arch::asm;
use core::ptr;

unsafe extern "C" {
    static mut __bss_start: u32;
    static mut __bss_end: u32;
    static __stack_top: u32;
    static __flash_end: u8;
}

/// What the stack's memory is filled with, to see later what was used.
const UNTOUCHED: u32 = 0x5ac3_96e1;
/// Bytes below the stack pointer at reset that are left alone while the rest is filled.
const NEAR: usize = 64;

#[unsafe(link_section = ".vectors.reset")]
#[used]
static RESET: unsafe extern "C" fn() -> ! = reset;

#[unsafe(no_mangle)]
unsafe extern "C" fn reset() -> ! {
    // SAFETY: runs once, before anything else; these are registers of the processor, and memory that nobody uses yet.
    unsafe {
        // The floating-point unit is off at reset (CPACR).
        ptr::write_volatile(0xe000_ed88 as *mut u32, 0xf << 20);
        asm!("dsb", "isb");
        let (mut at, end) = (&raw mut __bss_start, &raw mut __bss_end);
        while at < end {
            at.write_volatile(0);
            at = at.add(1);
        }
        let stack: usize;
        asm!("mov {}, sp", out(reg) stack);
        while (at as usize) < stack - NEAR {
            at.write_volatile(UNTOUCHED);
            at = at.add(1);
        }
        // SysTick counts down from its largest value, by the processor's clock, without interrupts.
        ptr::write_volatile(0xe000_e014 as *mut u32, 0x00ff_ffff);
        ptr::write_volatile(0xe000_e018 as *mut u32, 0);
        ptr::write_volatile(0xe000_e010 as *mut u32, 0b101);
    }
    crate::main()
}

/// The most bytes that the stack had.
pub fn stack_used() -> usize {
    let (mut at, top) = (&raw const __bss_end, &raw const __stack_top);
    // SAFETY: memory between the variables and the top of the stack, which is RAM; it is only read.
    unsafe {
        while at < top && at.read_volatile() == UNTOUCHED {
            at = at.add(1);
        }
        top.byte_offset_from(at) as usize
    }
}

/// Bytes of flash that the program takes, with its model.
pub fn flash_used() -> usize {
    (&raw const __flash_end) as usize
}

/// Bytes of RAM that variables take, the arena among them.
pub fn variables() -> usize {
    (&raw const __bss_end) as usize - (&raw const __bss_start) as usize
}

/// Ticks since `before`, which this updates; fewer than 2^24 may lie between.
pub fn ticks(before: &mut u32) -> u32 {
    // SAFETY: reads a counter of the processor's.
    let now = unsafe { ptr::read_volatile(0xe000_e018 as *const u32) };
    let passed = before.wrapping_sub(now) & 0x00ff_ffff;
    *before = now;
    passed
}

/// Asks the debugger, or the emulator, for something (ARM's semihosting).
fn ask(operation: usize, argument: usize) {
    // SAFETY: the operations that are used read what `argument` points to, and write nothing.
    unsafe { asm!("bkpt 0xab", inout("r0") operation => _, in("r1") argument) };
}

/// Writes text to the debugger's console.
pub fn write(text: &[u8]) {
    for piece in text.chunks(31) {
        let mut buffer = [0; 32];
        buffer[..piece.len()].copy_from_slice(piece);
        ask(4, buffer.as_ptr() as usize);
    }
}

/// Ends the program; 0 is success.
pub fn exit(code: u32) -> ! {
    let stopped: [u32; 2] = [0x2_0026, code];
    loop {
        ask(0x20, stopped.as_ptr() as usize);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    write(b"panic\n");
    exit(101)
}
