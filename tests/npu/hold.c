/* hold.c PID: holds a process so that a kill does not end it, as a driver does in whose code it is stuck: a traced process
 * stays until its tracer has seen its end, and this one never looks. Prints "held"; let go by ending this program. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <unistd.h>

int main(int count, char **words) {
  if (count != 2 || ptrace(PTRACE_SEIZE, atoi(words[1]), NULL, NULL) != 0) {
    perror("ptrace");
    return 1;
  }
  puts("held");
  fflush(stdout);
  for (;;) pause();
}
