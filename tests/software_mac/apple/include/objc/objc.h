// The words of the language itself.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef bool BOOL;
extern "C" BOOL sel_isEqual(SEL one, SEL other);
extern "C" const char* sel_getName(SEL selector);
#define YES __objc_yes
#define NO __objc_no
#define nil nullptr
#define Nil nullptr
