// SPDX-License-Identifier: MIT
/*
 * A stand-in for nvidia-modprobe, setuid root: it loads the nvidia module and
 * makes the device nodes, /dev/nvidiactl and one for each GPU.
 */
#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define NV_MAJOR 195
#define NV_CTL_MINOR 255

static void node(const char *path, int minor)
{
	if (mknod(path, S_IFCHR | 0666, makedev(NV_MAJOR, minor)) == 0)
		chmod(path, 0666);
}

int main(void)
{
	char *const env[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", 0 };
	char path[32];
	struct dirent *e;
	int status, n = 0;
	DIR *dir;
	pid_t pid;

	if (setuid(0))
		return 1;
	pid = fork();
	if (pid == 0) {
		execle("/sbin/modprobe", "modprobe", "-q", "nvidia", (char *)0, env);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || status)
		return 1;
	dir = opendir("/proc/driver/nvidia/gpus");
	if (!dir)
		return 1;
	node("/dev/nvidiactl", NV_CTL_MINOR);
	while ((e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/dev/nvidia%d", n);
		node(path, n++);
	}
	closedir(dir);
	return 0;
}
