#include "machine.h"

/* From link.ld. */
extern uint32_t bss_start, bss_end, stack_top;
extern char flash_end;

int main(void);
_Noreturn void reset(void);

/* What the stack's memory is filled with, to see later what was used. */
#define UNTOUCHED 0x5ac396e1u
/* Bytes below the stack pointer at reset that are left alone while the rest is filled. */
#define NEAR 64

/* Registers of the processor. */
#define CPACR (*(volatile uint32_t *)0xe000ed88u)
#define SYST_CSR (*(volatile uint32_t *)0xe000e010u)
#define SYST_RVR (*(volatile uint32_t *)0xe000e014u)
#define SYST_CVR (*(volatile uint32_t *)0xe000e018u)

/* Where the processor finds its stack and what runs first. */
typedef union vector {
    uint32_t *stack;
    void (*handler)(void);
} vector;

__attribute__((section(".vectors"), used)) static const vector vectors[] = {{.stack = &stack_top}, {.handler = reset}};

_Noreturn void reset(void) {
    volatile uint32_t *at = &bss_start;
    uintptr_t stack;
    /* The floating-point unit is off at reset. */
    CPACR = 0xfu << 20;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
    while (at < &bss_end) {
        *at++ = 0;
    }
    __asm__ volatile("mov %0, sp" : "=r"(stack));
    while ((uintptr_t)at < stack - NEAR) {
        *at++ = UNTOUCHED;
    }
    /* SysTick counts down from its largest value, by the processor's clock, without interrupts. */
    SYST_RVR = 0x00ffffff;
    SYST_CVR = 0;
    SYST_CSR = 5;
    machine_exit((uint32_t)main());
}

/* Asks the debugger, or the emulator, for something (ARM's semihosting). */
static void ask(uint32_t operation, const void *argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

void machine_write(const char *text, size_t size) {
    while (size > 0) {
        char buffer[32];
        size_t count = 0;
        while (count < size && count < sizeof buffer - 1) {
            buffer[count] = text[count];
            count++;
        }
        buffer[count] = '\0';
        ask(4, buffer);
        text += count;
        size -= count;
    }
}

void machine_exit(uint32_t code) {
    const uint32_t stopped[2] = {0x20026, code};
    for (;;) {
        ask(0x20, stopped);
    }
}

uint32_t machine_ticks(uint32_t *before) {
    uint32_t now = SYST_CVR, passed = (*before - now) & 0x00ffffff;
    *before = now;
    return passed;
}

uint32_t machine_flash_used(void) {
    return (uint32_t)(uintptr_t)&flash_end;
}

uint32_t machine_variables(void) {
    return (uint32_t)((uintptr_t)&bss_end - (uintptr_t)&bss_start);
}

uint32_t machine_stack_used(void) {
    const volatile uint32_t *at = &bss_end;
    while (at < &stack_top && *at == UNTOUCHED) {
        at++;
    }
    return (uint32_t)((uintptr_t)&stack_top - (uintptr_t)at);
}
