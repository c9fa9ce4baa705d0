/* The machine: the debugger's console, a counter of time, and how much of the memories was used. */
#ifndef MACHINE_H
#define MACHINE_H

#include <stddef.h>
#include <stdint.h>

/* Writes text to the debugger's console. */
void machine_write(const char *text, size_t size);

/* Ends the program; 0 is success. */
_Noreturn void machine_exit(uint32_t code);

/* Ticks since `before`, which this updates; fewer than 2^24 may lie between. */
uint32_t machine_ticks(uint32_t *before);

/* Bytes of flash that the program takes, with its model. */
uint32_t machine_flash_used(void);

/* Bytes of RAM that variables take, the arena among them. */
uint32_t machine_variables(void);

/* The most bytes that the stack had. */
uint32_t machine_stack_used(void);

#endif
