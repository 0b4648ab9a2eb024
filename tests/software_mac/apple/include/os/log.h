// Apple's unified log, written to standard error.
#pragma once

#include <objc/NSObject.h>
#include <stdio.h>

typedef struct os_log_s* os_log_t;
#define OS_LOG_DEFAULT ((os_log_t)nullptr)
static inline os_log_t os_log_create(const char*, const char*) { return OS_LOG_DEFAULT; }
#define os_log(log, ...) ((void)(log), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr))
#define os_log_info os_log
#define os_log_debug os_log
#define os_log_error os_log
#define os_log_fault os_log
