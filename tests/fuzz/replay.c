/* Run a fuzz target over every file of a folder.
 * SPDX-License-Identifier: MIT */
#include <dirent.h>

#include "fuzz.h"

int main(int argc, char **argv)
{
    struct dirent **names;
    int n, ran = 0;

    if (argc != 2)
        return fprintf(stderr, "usage: %s CORPUS\n", argv[0]), 2;
    n = scandir(argv[1], &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char path[4096];
        FILE *f;

        snprintf(path, sizeof path, "%s/%s", argv[1], names[i]->d_name);
        f = names[i]->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (f) {
            uint8_t *data = malloc(1 << 24);
            size_t size = fread(data, 1, 1 << 24, f);
            uint8_t *exact = malloc(size ? size : 1); /* so that a read past the end is seen */

            memcpy(exact, data, size);
            free(data);
            LLVMFuzzerTestOneInput(exact, size);
            free(exact);
            fclose(f);
            ran++;
        }
        free(names[i]);
    }
    if (n >= 0)
        free(names);
    printf("%d inputs\n", ran);
    return ran ? 0 : 1;
}
