package wire

// A VM without virtio-serial, such as VMware's, has UARTs at the addresses of COM1 to COM3: the kernel's console, then in
// the place of ControlPort and of LogPort:
const (
	ControlSerial = 1 // /dev/ttyS1
	LogSerial     = 2
)

// SerialWindow is ConnectOptions.Window over a UART. One takes some 0.1 MB/s into a guest and 0.5 out of it, and what is under
// way on one channel is ahead of all others.
const SerialWindow = 8 << 10
