/* SPDX-License-Identifier: MIT */
/* What every NVIDIA library does before its first call: have the setuid helper load the module and make the nodes. */
#include <sys/wait.h>
#include <unistd.h>

static void load_module(void)
{
	pid_t pid;

	if (access("/dev/nvidiactl", F_OK) == 0 && access("/proc/driver/nvidia/version", F_OK) == 0)
		return;
	pid = fork();
	if (pid == 0) {
		execl("/usr/bin/nvidia-modprobe", "nvidia-modprobe", (char *)0);
		_exit(127);
	}
	if (pid > 0)
		waitpid(pid, (int *)0, 0);
}
