"""Types into a program that wants a terminal: keys.py WAIT-FOR KEYS COMMAND...

Starts COMMAND on a terminal of 80 x 24, waits until it has shown WAIT-FOR, types KEYS (with Python escapes), reads to
the end, and ends as COMMAND ended.
"""
import fcntl, os, pty, struct, sys, termios

wait_for, keys, command = sys.argv[1].encode(), sys.argv[2], sys.argv[3:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
shown, typed = b"", False
while True:
    try:
        read = os.read(terminal, 65536)
    except OSError:
        # The last process on the terminal is gone.
        break
    if not read:
        break
    shown += read
    if not typed and wait_for in shown:
        os.write(terminal, keys.encode().decode("unicode_escape").encode())
        typed = True
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
if status or not typed:
    sys.exit(f"{command} ended with {status}, typed: {typed}, shown: {shown!r}")
