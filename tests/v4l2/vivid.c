/* The other side of vivid, written against the kernel's own header: feeds pictures into its output node, which "Loop Video" brings
   back on the capture node, and sets its controls.

   vivid feed OUTPUT CAPTURE FOURCC EXPECTED   write the picture that is fed to EXPECTED, then feed it for ever
   vivid play OUTPUT CAPTURE FOURCC FILE...    feed the first file's bytes; each SIGUSR1 goes on to the next file
   vivid set DEVICE CONTROL VALUE              set the control whose name contains CONTROL */
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static void ask(int fd, unsigned long request, void *argument, const char *name) {
    if (ioctl(fd, request, argument)) {
        perror(name);
        exit(1);
    }
}

static int open_node(const char *path) {
    int fd = open(path, O_RDWR);
    if (fd < 0) {
        perror(path);
        exit(1);
    }
    return fd;
}

static void set(int fd, const char *name, int value) {
    struct v4l2_query_ext_ctrl query = {.id = V4L2_CTRL_FLAG_NEXT_CTRL};
    while (!ioctl(fd, VIDIOC_QUERY_EXT_CTRL, &query)) {
        if (query.type != V4L2_CTRL_TYPE_CTRL_CLASS && strstr(query.name, name)) {
            struct v4l2_control control = {query.id, value};
            ask(fd, VIDIOC_S_CTRL, &control, name);
            printf("set \"%s\" to %d\n", query.name, value);
            return;
        }
        query.id |= V4L2_CTRL_FLAG_NEXT_CTRL;
    }
    fprintf(stderr, "no control %s\n", name);
    exit(1);
}

static void feed(char **arguments) {
    int out = open_node(arguments[0]), capture = open_node(arguments[1]);
    set(capture, "Loop Video", 1);
    set(capture, "OSD Text Mode", 2);
    close(capture);

    struct v4l2_capability who;
    ask(out, VIDIOC_QUERYCAP, &who, "querycap");
    int multi = (who.device_caps & V4L2_CAP_VIDEO_OUTPUT_MPLANE) != 0;
    unsigned type = multi ? V4L2_BUF_TYPE_VIDEO_OUTPUT_MPLANE : V4L2_BUF_TYPE_VIDEO_OUTPUT;
    struct v4l2_format format = {.type = type};
    ask(out, VIDIOC_G_FMT, &format, "g_fmt");
    unsigned code = v4l2_fourcc(arguments[2][0], arguments[2][1], arguments[2][2], arguments[2][3]);
    /* Rows without padding: the driver would keep the length of the format before. */
    if (multi) {
        format.fmt.pix_mp.pixelformat = code;
        format.fmt.pix_mp.field = V4L2_FIELD_NONE;
        memset(format.fmt.pix_mp.plane_fmt, 0, sizeof format.fmt.pix_mp.plane_fmt);
    } else {
        format.fmt.pix.pixelformat = code;
        format.fmt.pix.field = V4L2_FIELD_NONE;
        format.fmt.pix.bytesperline = 0;
    }
    ask(out, VIDIOC_S_FMT, &format, "s_fmt");
    if ((multi ? format.fmt.pix_mp.pixelformat : format.fmt.pix.pixelformat) != code) {
        fprintf(stderr, "the output has no %s\n", arguments[2]);
        exit(1);
    }
    unsigned planes = multi ? format.fmt.pix_mp.num_planes : 1;
    unsigned width = multi ? format.fmt.pix_mp.width : format.fmt.pix.width;
    unsigned height = multi ? format.fmt.pix_mp.height : format.fmt.pix.height;

    struct v4l2_requestbuffers request = {.count = 4, .type = type, .memory = V4L2_MEMORY_MMAP};
    ask(out, VIDIOC_REQBUFS, &request, "reqbufs");
    FILE *expected = fopen(arguments[3], "w");
    unsigned used[VIDEO_MAX_PLANES] = {0};
    for (unsigned i = 0; i < request.count; i++) {
        struct v4l2_plane plane[VIDEO_MAX_PLANES];
        memset(plane, 0, sizeof plane);
        struct v4l2_buffer buffer = {.index = i, .type = type, .memory = V4L2_MEMORY_MMAP};
        if (multi)
            buffer.m.planes = plane, buffer.length = planes;
        ask(out, VIDIOC_QUERYBUF, &buffer, "querybuf");
        for (unsigned p = 0; p < planes; p++) {
            unsigned length = multi ? plane[p].length : buffer.length;
            used[p] = multi ? format.fmt.pix_mp.plane_fmt[p].sizeimage : format.fmt.pix.sizeimage;
            unsigned char *bytes = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, out,
                                        multi ? plane[p].m.mem_offset : buffer.m.offset);
            if (bytes == MAP_FAILED)
                perror("mmap"), exit(1);
            /* Any two neighbours, rows and planes differ; all values are in video range. */
            for (unsigned k = 0; k < used[p]; k++)
                bytes[k] = 16 + (k * 7 + k / width * 3 + k / 251 + p * 101) % 220;
            /* The picture without what vivid's multi-planar interface reserves for a header (data_offset). */
            unsigned row = multi ? format.fmt.pix_mp.plane_fmt[p].bytesperline : format.fmt.pix.bytesperline;
            unsigned rows = code == V4L2_PIX_FMT_NV12 ? height * 3 / 2 : p > 0 ? height / 2 : height;
            if (i == 0)
                fwrite(bytes, 1, row * rows, expected);
            plane[p].bytesused = used[p];
        }
        buffer.bytesused = multi ? 0 : used[0];
        buffer.field = V4L2_FIELD_NONE;
        ask(out, VIDIOC_QBUF, &buffer, "qbuf");
    }
    fclose(expected);
    ask(out, VIDIOC_STREAMON, &type, "streamon");
    printf("feeding %s %ux%u, %u planes\n", arguments[2], width, height, planes);
    fflush(stdout);
    for (;;) {
        struct v4l2_plane plane[VIDEO_MAX_PLANES];
        memset(plane, 0, sizeof plane);
        struct v4l2_buffer buffer = {.type = type, .memory = V4L2_MEMORY_MMAP};
        if (multi)
            buffer.m.planes = plane, buffer.length = planes;
        ask(out, VIDIOC_DQBUF, &buffer, "dqbuf");
        for (unsigned p = 0; p < planes; p++)
            plane[p].bytesused = used[p];
        buffer.bytesused = multi ? 0 : used[0];
        buffer.field = V4L2_FIELD_NONE;
        ask(out, VIDIOC_QBUF, &buffer, "qbuf");
    }
}

static volatile sig_atomic_t turns;

static void turn(int signal) {
    (void)signal;
    turns++;
}

/* Single-planar only. A file has exactly the bytes of one picture. */
static void play(char **arguments, int files) {
    int out = open_node(arguments[0]), capture = open_node(arguments[1]);
    set(capture, "Loop Video", 1);
    set(capture, "OSD Text Mode", 2);
    close(capture);
    signal(SIGUSR1, turn);

    unsigned type = V4L2_BUF_TYPE_VIDEO_OUTPUT;
    struct v4l2_format format = {.type = type};
    ask(out, VIDIOC_G_FMT, &format, "g_fmt");
    format.fmt.pix.pixelformat =
        v4l2_fourcc(arguments[2][0], arguments[2][1], arguments[2][2], arguments[2][3]);
    format.fmt.pix.field = V4L2_FIELD_NONE;
    format.fmt.pix.bytesperline = 0;
    ask(out, VIDIOC_S_FMT, &format, "s_fmt");
    size_t size = format.fmt.pix.sizeimage;

    unsigned char *pictures = malloc(size * files);
    for (int i = 0; i < files; i++) {
        FILE *file = fopen(arguments[3 + i], "r");
        if (!file || fread(pictures + size * i, 1, size, file) != size || fgetc(file) != EOF) {
            fprintf(stderr, "%s: not %zu bytes\n", arguments[3 + i], size);
            exit(1);
        }
        fclose(file);
    }

    struct v4l2_requestbuffers request = {.count = 4, .type = type, .memory = V4L2_MEMORY_MMAP};
    ask(out, VIDIOC_REQBUFS, &request, "reqbufs");
    unsigned char *bytes[VIDEO_MAX_FRAME];
    int shown[VIDEO_MAX_FRAME];
    for (unsigned i = 0; i < request.count; i++) {
        struct v4l2_buffer buffer = {.index = i, .type = type, .memory = V4L2_MEMORY_MMAP};
        ask(out, VIDIOC_QUERYBUF, &buffer, "querybuf");
        bytes[i] = mmap(0, buffer.length, PROT_READ | PROT_WRITE, MAP_SHARED, out, buffer.m.offset);
        if (bytes[i] == MAP_FAILED)
            perror("mmap"), exit(1);
        memcpy(bytes[i], pictures, size);
        shown[i] = 0;
        buffer.bytesused = size;
        buffer.field = V4L2_FIELD_NONE;
        ask(out, VIDIOC_QBUF, &buffer, "qbuf");
    }
    ask(out, VIDIOC_STREAMON, &type, "streamon");
    printf("playing %ux%u\n", format.fmt.pix.width, format.fmt.pix.height);
    fflush(stdout);
    for (;;) {
        struct v4l2_buffer buffer = {.type = type, .memory = V4L2_MEMORY_MMAP};
        while (ioctl(out, VIDIOC_DQBUF, &buffer))
            if (errno != EINTR)
                perror("dqbuf"), exit(1);
        int wanted = turns % files;
        if (shown[buffer.index] != wanted) {
            memcpy(bytes[buffer.index], pictures + size * wanted, size);
            shown[buffer.index] = wanted;
        }
        buffer.bytesused = size;
        buffer.field = V4L2_FIELD_NONE;
        ask(out, VIDIOC_QBUF, &buffer, "qbuf");
    }
}

int main(int count, char **words) {
    if (count == 6 && !strcmp(words[1], "feed"))
        feed(words + 2);
    else if (count >= 6 && !strcmp(words[1], "play"))
        play(words + 2, count - 5);
    else if (count == 5 && !strcmp(words[1], "set"))
        set(open_node(words[2]), words[3], atoi(words[4]));
    else
        return fprintf(stderr, "wrong use, see the source\n"), 2;
    return 0;
}
