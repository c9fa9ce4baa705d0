//! Generates tokens from a model inside the program, with nothing under it but two system calls of Linux: no std, no
//! libc, no allocator. It prints each token's number, then a hash of the last logits.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use trion_core::{Error, Kernel, Progress, Sampler, SamplerOptions, Serial, Session, SessionOptions};

#[path = "../../../examples/bare-metal/src/model.rs"]
mod model;

const PROMPT: [u32; 4] = [1, 17, 4, 60];
const TOKENS: usize = 24;
const OPTIONS: SessionOptions = SessionOptions { max_batch: 4, ..SessionOptions::new(PROMPT.len() + TOKENS) };
/// The session's size is known when the program is built.
const ARENA_BYTES: usize = Session::bytes(&model::CONFIG, &OPTIONS);

struct Arena(UnsafeCell<model::Aligned<[u8; ARENA_BYTES]>>);

// SAFETY: the program has one thread.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new(model::Aligned([0; ARENA_BYTES])));

fn generate() -> Result<(), Error> {
    model::with_model(|model| {
        // SAFETY: this is the only place that touches the arena, and it runs once.
        let arena = unsafe { &mut (*ARENA.0.get()).0 };
        let mut session = Session::new(model, OPTIONS, Kernel::detect(), arena)?;
        let mut sampler = Sampler::new(SamplerOptions::GREEDY)?;
        session.push(&PROMPT)?;
        for _ in 0..TOKENS {
            while session.advance(10, &Serial)? == Progress::More {}
            let token = sampler.sample(session.logits().unwrap_or(&[]), session.tokens());
            print_number(u64::from(token));
            session.push(&[token])?;
        }
        while session.advance(10, &Serial)? == Progress::More {}
        let hash = session
            .logits()
            .unwrap_or(&[])
            .iter()
            .fold(0_u64, |hash, logit| hash.wrapping_mul(31).wrapping_add(u64::from(logit.to_bits())));
        print_number(hash);
        Ok(())
    })
}

fn print_number(mut number: u64) {
    let mut text = *b"                    \n";
    for digit in text[..20].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    write(text.trim_ascii_start());
}

global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {entry}", "ud2", entry = sym entry);

extern "C" fn entry() -> ! {
    exit(match generate() {
        Ok(()) => 0,
        Err(_) => 1,
    })
}

fn system_call(number: usize, a: usize, b: usize, c: usize) -> usize {
    let result;
    // SAFETY: called for write (1) with a live buffer, and for exit_group (231), which does not return.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, out("rcx") _,
             out("r11") _, options(nostack));
    }
    result
}

fn write(text: &[u8]) {
    system_call(1, 1, text.as_ptr() as usize, text.len());
}

fn exit(code: usize) -> ! {
    loop {
        system_call(231, code, 0, 0);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    write(b"panic\n");
    exit(101)
}

/// What the compiler calls for copies; elsewhere libc has these.
mod memory {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
        // SAFETY: the caller promises `count` bytes at both, apart from each other.
        unsafe {
            asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _, options(nostack))
        };
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
        // SAFETY: the caller promises `count` bytes.
        unsafe {
            asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8, inout("rcx") count => _, options(nostack))
        };
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= count {
            // SAFETY: copying forward, no byte is written before it is read.
            return unsafe { memcpy(to, from, count) };
        }
        // SAFETY: as for memcpy; backward, since the target begins inside the source.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
                 inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, inout("rcx") count => _, options(nostack));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
        // SAFETY: the caller promises `count` bytes at both.
        unsafe { memcmp(a, b, count) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
        for i in 0..count {
            // SAFETY: `i` is below `count`, the number of bytes that the caller promises at both. Volatile, or the
            // compiler would make this loop a call of memcmp.
            let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
            if x != y {
                return i32::from(x) - i32::from(y);
            }
        }
        0
    }
}
