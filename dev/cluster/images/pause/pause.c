/* The first process of every pod: keeps its namespaces, reaps orphaned processes, exits on SIGTERM. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
    sigset_t awaited;
    int received;

    sigemptyset(&awaited);
    sigaddset(&awaited, SIGCHLD);
    sigaddset(&awaited, SIGINT);
    sigaddset(&awaited, SIGTERM);
    sigprocmask(SIG_BLOCK, &awaited, NULL);
    for (;;) {
        if (sigwait(&awaited, &received) != 0 || received != SIGCHLD)
            _exit(0);
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
    }
}
